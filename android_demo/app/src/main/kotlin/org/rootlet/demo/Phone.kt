package org.rootlet.demo

import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.net.ConnectivityManager
import android.os.BatteryManager
import java.io.File
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.device.BatteryReading
import org.rootlet.device.DeviceConditions
import org.rootlet.device.PhoneDevice

/** The app's one device, and what Android tells of the phone. */
object Phone {
    private const val BUNDLE = "digits.rootlet"
    private const val PUBLISHER = "publisher.hex"
    private var only: PhoneDevice? = null

    /** The device; its files lie in the app's own storage, which Android encrypts and hands to no other app. */
    @Synchronized
    fun device(context: Context): PhoneDevice {
        val app = context.applicationContext
        return only ?: PhoneDevice(File(app.filesDir, "device"), { bundle(app) }, { battery(app) }).also { only = it }
    }

    /** What the policy asks for. That the phone is idle is the job scheduler's to see to. */
    fun conditions(context: Context): DeviceConditions {
        val battery = context.getSystemService(BatteryManager::class.java)
        val level = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)
        return DeviceConditions(
            charging = battery.isCharging,
            batteryLevel = if (level in 0..100) level / 100.0 else null,
            unmetered = !context.getSystemService(ConnectivityManager::class.java).isActiveNetworkMetered,
        )
    }

    /** What the battery's gauge tells; a phone without one answers the least number that there is. */
    private fun battery(context: Context): BatteryReading {
        val battery = context.getSystemService(BatteryManager::class.java)
        val state = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        return BatteryReading(
            energyNwh = battery.getLongProperty(BatteryManager.BATTERY_PROPERTY_ENERGY_COUNTER).takeIf { it > 0 },
            chargeUah = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CHARGE_COUNTER).toLong().takeIf { it > 0 },
            voltageMv = state?.getIntExtra(BatteryManager.EXTRA_VOLTAGE, 0)?.toLong()?.takeIf { it > 0 },
            charging = battery.isCharging,
        )
    }

    /** The bundle that the APK brings, if its publisher signed it. */
    private fun bundle(app: Context): Bundle {
        val file = File(app.filesDir, BUNDLE)
        app.assets.open(BUNDLE).use { file.writeBytes(it.readBytes()) }
        val publisher = app.assets.open(PUBLISHER).use { it.readBytes() }.toString(Charsets.US_ASCII).trim()
        return Bundle.load(file, listOf(PublicKey.ofHex(publisher)))
    }
}
