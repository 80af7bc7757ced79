package android.widget;

public class Button extends TextView {
    public Button(android.content.Context c, android.util.AttributeSet a) { super(c, a); } }
