package org.rootlet.demo

import android.app.Activity
import android.os.BatteryManager
import android.os.Build
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.Switch
import android.widget.TextView
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import org.rootlet.device.DeviceSettings

/** The one screen: draw, see what the model says, teach it, see what it learnt, and what left the phone. */
class MainActivity : Activity() {
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private lateinit var drawing: DrawView
    private lateinit var pause: Switch

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        drawing = findViewById(R.id.drawing)
        pause = findViewById(R.id.pause)
        drawing.onStroke = ::ask
        findViewById<Button>(R.id.clear).setOnClickListener { drawing.clear() }
        findViewById<Button>(R.id.teach).setOnClickListener { teach() }
        findViewById<Button>(R.id.erase).setOnClickListener { erase() }
        findViewById<Button>(R.id.join).setOnClickListener { join() }
        if (Build.VERSION.SDK_INT >= ASKS_FOR_NOTICES) requestPermissions(arrayOf("android.permission.POST_NOTIFICATIONS"), 0)
        inBackground {
            val settings = Session.use(this) { it.settings }
            val key = String(KeystoreNodeKey().publicPem, Charsets.US_ASCII)
            runOnUiThread {
                pause.isChecked = settings.paused
                findViewById<EditText>(R.id.server).setText(settings.server)
                findViewById<EditText>(R.id.certificate).setText(settings.certificate)
                findViewById<TextView>(R.id.node_key).text = key
                pause.setOnCheckedChangeListener { _, paused -> pause(paused) }
            }
        }
    }

    override fun onResume() {
        super.onResume()
        refresh()
    }

    override fun onDestroy() {
        worker.shutdown()
        super.onDestroy()
    }

    private fun ask() {
        val picture = drawing.cells.clone()
        inBackground {
            val odds = Session.use(this) { it.predict(picture) }
            val likely = odds.indices.sortedByDescending { odds[it] }.take(3)
            show(R.id.answer, likely.joinToString("   ") { "$it: ${(100 * odds[it]).toInt()} %" })
        }
    }

    private fun teach() {
        val digit = findViewById<EditText>(R.id.label).text.toString().toIntOrNull()
        if (digit == null) {
            show(R.id.answer, getString(R.string.digit))
            return
        }
        val picture = drawing.cells.clone()
        inBackground {
            val (text, paused) = Session.use(this) { session ->
                session.teach(picture, digit)
                val before = session.measure()!!.metric
                session.train { true }
                val after = session.measure()!!.metric
                "Right on your drawings before: ${percent(before)}, after: ${percent(after)}" to session.settings.paused
            }
            if (!paused) TrainJob.schedule(this)
            show(R.id.learnt, text)
            refresh()
        }
    }

    private fun pause(paused: Boolean) = inBackground {
        Session.use(this) { it.settings = it.settings.copy(paused = paused) }
        if (paused) TrainJob.cancel(this) else TrainJob.schedule(this)
    }

    /** Joins the federation whose address stands there; without one, leaves it. */
    private fun join() {
        val server = findViewById<EditText>(R.id.server).text.toString().trim()
        val certificate = findViewById<EditText>(R.id.certificate).text.toString()
        inBackground {
            val settings = Session.use(this) { session ->
                DeviceSettings(session.settings.paused, server, certificate).also { session.settings = it }
            }
            TrainJob.cancel(this)
            if (!settings.paused) TrainJob.schedule(this)
            show(R.id.joined, getString(if (settings.server.isEmpty()) R.string.alone else R.string.joins))
        }
    }

    private fun erase() = inBackground {
        TrainJob.cancel(this)
        Session.use(this) { it.erase() }
        KeystoreNodeKey().delete()
        show(R.id.learnt, getString(R.string.erased))
        refresh()
    }

    /** What is known, what it cost, and what left the phone. */
    private fun refresh() = inBackground {
        val battery = getSystemService(BatteryManager::class.java)
        val level = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)
        val charging = if (battery.isCharging) "charging" else "not charging"
        Session.use(this) { session ->
            show(R.id.known, if (session.taught == 0) getString(R.string.untaught) else "Taught: ${session.known()}")
            show(R.id.battery, "Battery: $level %, $charging")
            show(R.id.energy, "Energy of training since the app was opened: ${"%.2g".format(session.estimatedJ)} J (estimated by operations, not measured)")
            show(R.id.left, session.left())
            show(R.id.trouble, session.trouble)
        }
    }

    private fun inBackground(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: Exception) {
            show(R.id.answer, error.message ?: error.javaClass.simpleName)
        }
    }

    private fun show(where: Int, text: String) = runOnUiThread { findViewById<TextView>(where).text = text }

    private fun percent(share: Double) = "${(100 * share).toInt()} %"

    private companion object {
        /** Android 13. */
        const val ASKS_FOR_NOTICES = 33
    }
}
