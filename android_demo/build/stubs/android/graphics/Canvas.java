package android.graphics;

public class Canvas {
    public void drawRect(float l, float t, float r, float b, Paint paint) {} }
