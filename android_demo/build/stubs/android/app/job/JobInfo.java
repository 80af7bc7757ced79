package android.app.job;

public class JobInfo {
    public static final int NETWORK_TYPE_UNMETERED = 2;
    public static final class Builder { public Builder(int id, android.content.ComponentName service) {}
    public Builder setRequiresCharging(boolean b) { return this; }
    public Builder setRequiresDeviceIdle(boolean b) { return this; }
    public Builder setRequiresBatteryNotLow(boolean b) { return this; }
    public Builder setRequiredNetworkType(int type) { return this; }
    public JobInfo build() { return null; } } }
