package android.os;

public class BatteryManager {
    public static final int BATTERY_PROPERTY_CHARGE_COUNTER = 1;
    public static final int BATTERY_PROPERTY_CAPACITY = 4;
    public static final int BATTERY_PROPERTY_ENERGY_COUNTER = 5;
    public static final String EXTRA_VOLTAGE = "voltage";
    public boolean isCharging() { return false; }
    public int getIntProperty(int id) { return 0; }
    public long getLongProperty(int id) { return 0; } }
