package android.app;

public class Activity extends android.content.ContextWrapper {
    protected void onCreate(android.os.Bundle saved) {}
    protected void onResume() {}
    protected void onDestroy() {}
    public void setContentView(int layout) {}
    public <T extends android.view.View> T findViewById(int id) { return null; }
    public boolean isFinishing() { return false; }
    public final void requestPermissions(String[] permissions, int code) {}
    public final void runOnUiThread(Runnable action) {} }
