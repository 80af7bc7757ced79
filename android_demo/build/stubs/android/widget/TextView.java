package android.widget;

public class TextView extends android.view.View {
    public TextView(android.content.Context c, android.util.AttributeSet a) { super(c, a); }
    public CharSequence getText() { return null; }
    public final void setText(CharSequence text) {} }
