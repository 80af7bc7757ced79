package android.app;

public class AlertDialog {
    public static class Builder { public Builder(android.content.Context context) {}
    public Builder setMessage(int text) { return this; }
    public Builder setMessage(CharSequence text) { return this; }
    public Builder setPositiveButton(int text, android.content.DialogInterface.OnClickListener listener) { return this; }
    public Builder setNegativeButton(int text, android.content.DialogInterface.OnClickListener listener) { return this; }
    public AlertDialog show() { return null; } } }
