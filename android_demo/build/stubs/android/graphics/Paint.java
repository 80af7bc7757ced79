package android.graphics;

public class Paint {
    public Paint() {}
    public void setARGB(int a, int r, int g, int b) {} }
