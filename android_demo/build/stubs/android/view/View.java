package android.view;

public class View {
    public View(android.content.Context context, android.util.AttributeSet attributes) {}
    public void invalidate() {}
    public boolean onTouchEvent(MotionEvent event) { return false; }
    public boolean performClick() { return false; }
    protected void onDraw(android.graphics.Canvas canvas) {}
    public final int getWidth() { return 0; }
    public final int getHeight() { return 0; }
    public void setOnClickListener(OnClickListener listener) {}
    public interface OnClickListener { void onClick(View view); } }
