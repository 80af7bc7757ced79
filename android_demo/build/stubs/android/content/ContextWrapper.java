package android.content;

public class ContextWrapper extends Context {
    public java.io.File getFilesDir() { return null; }
    public Context getApplicationContext() { return null; }
    public android.content.res.AssetManager getAssets() { return null; }
    public Intent registerReceiver(BroadcastReceiver receiver, IntentFilter filter) { return null; }
    public void startActivity(Intent intent) {}
    public int checkSelfPermission(String permission) { return 0; } }
