package android.content;

public abstract class Context {
    public abstract java.io.File getFilesDir();
    public abstract Context getApplicationContext();
    public abstract android.content.res.AssetManager getAssets();
    public abstract Intent registerReceiver(BroadcastReceiver receiver, IntentFilter filter);
    public abstract void startActivity(Intent intent);
    public abstract int checkSelfPermission(String permission);
    public final <T> T getSystemService(Class<T> type) { return null; }
    public final String getString(int id) { return null; } }
