package org.rootlet.demo

import android.Manifest
import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.content.pm.PackageManager
import android.os.Build
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.Switch
import android.widget.TextView
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import org.rootlet.device.FederationSettings
import org.rootlet.device.PhoneDevice
import org.rootlet.device.Words

/** The one screen: draw, see what the model says, teach it; what it learnt, what that cost, and what left the phone. */
class MainActivity : Activity() {
    private val worker: ExecutorService = Executors.newSingleThreadExecutor()
    private lateinit var device: PhoneDevice
    private lateinit var drawing: DrawView

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        device = Phone.device(this)
        drawing = findViewById(R.id.drawing)
        drawing.onStroke = ::ask
        onClick(R.id.clear) { drawing.clear() }
        onClick(R.id.teach) { teach() }
        onClick(R.id.join) { join() }
        onClick(R.id.leave) { change { device.federation = null } }
        onClick(R.id.share) { share() }
        onClick(R.id.erase) { confirmErasing() }
        val pause = findViewById<Switch>(R.id.pause)
        pause.isChecked = device.paused
        pause.setOnCheckedChangeListener { _, paused -> change { device.paused = paused } }
    }

    override fun onResume() {
        super.onResume()
        inBackground { refresh() }
    }

    override fun onDestroy() {
        worker.shutdown()
        super.onDestroy()
    }

    private fun ask() {
        val picture = drawing.cells.clone()
        inBackground { show(R.id.answer, Words.guesses(device.learner.predict(picture))) }
    }

    private fun teach() {
        val digit = typed(R.id.label).toLongOrNull() ?: return show(R.id.answer, getString(R.string.digit))
        val picture = drawing.cells.clone()
        change {
            device.learner.examples.add(picture, digit)
            device.learner.train { true }
        }
        askToNotify()
    }

    private fun join() {
        val (server, authority) = typed(R.id.server) to typed(R.id.authority)
        change { device.federation = FederationSettings.of(server, authority) }
        askToNotify()
    }

    private fun share() = inBackground {
        val key = String(NodeKeys.open().publicPem, Charsets.US_ASCII)
        val intent = Intent(Intent.ACTION_SEND).setType("text/plain").putExtra(Intent.EXTRA_TEXT, key)
        runOnUiThread { startActivity(Intent.createChooser(intent, getString(R.string.share))) }
    }

    private fun confirmErasing() {
        AlertDialog.Builder(this)
            .setMessage(R.string.erase_what)
            .setPositiveButton(R.string.erase) { _, _ -> change { device.erase(NodeKeys::forget) } }
            .setNegativeButton(R.string.keep, null)
            .show()
    }

    /** Does [what] off the screen's thread, lets the background follow, and shows what has become of it. */
    private fun change(what: () -> Unit) = inBackground {
        try {
            what()
        } finally {
            if (device.paused) TrainJob.cancel(this) else TrainJob.schedule(this)
            refresh()
        }
    }

    private fun refresh() {
        val federation = device.federation
        show(R.id.battery, Words.battery(Phone.conditions(this)))
        show(R.id.federation, Words.federation(federation, device.paused))
        show(R.id.key, if (federation == null) "" else getString(R.string.enrol) + "\n" + String(NodeKeys.open().publicPem, Charsets.US_ASCII))
        show(R.id.turn, device.lastTurn)
        val left = device.left()
        show(R.id.left, Words.left(left))
        show(R.id.privacy, Words.privacy(left))
        val learner = device.learner
        show(R.id.learnt, listOf(Words.knows(learner.learnt), learner.forgotten).filter { it.isNotEmpty() }.joinToString(" "))
        show(R.id.taught, Words.taught(learner.examples.countByClass))
        show(R.id.energy, Words.energy(learner.energy.spent))
    }

    /** From Android 13 on, a notification needs the user's leave; without it the phone learns all the same. */
    private fun askToNotify() {
        if (Build.VERSION.SDK_INT < TIRAMISU) return
        if (checkSelfPermission(Manifest.permission.POST_NOTIFICATIONS) != PackageManager.PERMISSION_GRANTED) {
            requestPermissions(arrayOf(Manifest.permission.POST_NOTIFICATIONS), 0)
        }
    }

    private fun inBackground(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: Exception) {
            runOnUiThread { tell(error.message ?: error.javaClass.simpleName) }
        }
    }

    private fun tell(text: String) {
        if (!isFinishing) AlertDialog.Builder(this).setMessage(text).setPositiveButton(R.string.ok, null).show()
    }

    private fun onClick(button: Int, work: () -> Unit) = findViewById<Button>(button).setOnClickListener { work() }

    private fun typed(field: Int): String = findViewById<EditText>(field).text.toString()

    private fun show(where: Int, text: String) = runOnUiThread { findViewById<TextView>(where).text = text }

    private companion object {
        const val TIRAMISU = 33
    }
}
