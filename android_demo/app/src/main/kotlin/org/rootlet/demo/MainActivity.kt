package org.rootlet.demo

import android.app.Activity
import android.os.BatteryManager
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.Switch
import android.widget.TextView
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors

/** The one screen: draw, see what the model says, teach it, and see what it learnt. */
class MainActivity : Activity() {
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private lateinit var drawing: DrawView
    private lateinit var answer: TextView
    private lateinit var learnt: TextView

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        drawing = findViewById(R.id.drawing)
        answer = findViewById(R.id.answer)
        learnt = findViewById(R.id.learnt)
        drawing.onStroke = ::ask
        findViewById<Button>(R.id.clear).setOnClickListener { drawing.clear() }
        findViewById<Button>(R.id.teach).setOnClickListener { teach() }
        findViewById<Button>(R.id.erase).setOnClickListener { erase() }
        findViewById<Switch>(R.id.pause).setOnCheckedChangeListener { _, paused ->
            if (paused) TrainJob.cancel(this) else TrainJob.schedule(this)
        }
    }

    override fun onResume() {
        super.onResume()
        val level = getSystemService(BatteryManager::class.java).getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)
        findViewById<TextView>(R.id.battery).text = "Battery: $level %"
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
            show(answer, likely.joinToString("   ") { "$it: ${(100 * odds[it]).toInt()} %" })
        }
    }

    private fun teach() {
        val digit = findViewById<EditText>(R.id.label).text.toString().toIntOrNull()
        if (digit == null) {
            answer.text = getString(R.string.digit)
            return
        }
        val picture = drawing.cells.clone()
        val paused = findViewById<Switch>(R.id.pause).isChecked
        inBackground {
            val text = Session.use(this) { session ->
                session.teach(picture, digit)
                val before = session.measure()!!.metric
                session.train { true }
                val after = session.measure()!!.metric
                "${session.taught} drawings. Right on them before: ${percent(before)}, after: ${percent(after)}"
            }
            if (!paused) TrainJob.schedule(this)
            show(learnt, text)
        }
    }

    private fun erase() = inBackground {
        Session.use(this) { it.erase() }
        TrainJob.cancel(this)
        show(learnt, "Erased.")
    }

    private fun inBackground(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: Exception) {
            show(answer, error.message ?: error.javaClass.simpleName)
        }
    }

    private fun show(where: TextView, text: String) = runOnUiThread { where.text = text }

    private fun percent(share: Double) = "${(100 * share).toInt()} %"
}
