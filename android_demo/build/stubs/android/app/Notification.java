package android.app;

public class Notification {
    public static class Builder { public Builder(android.content.Context context, String channel) {}
    public Builder setSmallIcon(int icon) { return this; }
    public Builder setContentTitle(CharSequence text) { return this; }
    public Builder setContentText(CharSequence text) { return this; }
    public Builder setOngoing(boolean ongoing) { return this; }
    public Notification build() { return null; } } }
