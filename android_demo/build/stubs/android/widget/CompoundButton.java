package android.widget;

public abstract class CompoundButton extends Button {
    public CompoundButton(android.content.Context c, android.util.AttributeSet a) { super(c, a); }
    public boolean isChecked() { return false; }
    public void setChecked(boolean checked) {}
    public void setOnCheckedChangeListener(OnCheckedChangeListener listener) {}
    public interface OnCheckedChangeListener { void onCheckedChanged(CompoundButton button, boolean checked); } }
