package android.content;

public abstract class Context {
    public java.io.File getFilesDir() { return null; }
    public android.content.res.AssetManager getAssets() { return null; }
    public final <T> T getSystemService(Class<T> type) { return null; }
    public final String getString(int id) { return null; } }
