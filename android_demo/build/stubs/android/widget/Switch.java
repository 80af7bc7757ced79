package android.widget;

public class Switch extends CompoundButton {
    public Switch(android.content.Context c, android.util.AttributeSet a) { super(c, a); } }
