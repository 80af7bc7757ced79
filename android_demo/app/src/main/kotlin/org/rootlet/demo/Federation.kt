package org.rootlet.demo

import android.content.Context
import android.os.BatteryManager
import java.io.File
import org.rootlet.device.DeviceConditions
import org.rootlet.device.Ledgered
import org.rootlet.device.ParticipationPolicy
import org.rootlet.fleet.Adapter
import org.rootlet.fleet.FleetConnection
import org.rootlet.fleet.FleetSession
import org.rootlet.fleet.Mailbox
import org.rootlet.fleet.Measured
import org.rootlet.fleet.Participant
import org.rootlet.fleet.RoundWork
import org.rootlet.fleet.StopSignal
import org.rootlet.fleet.TrainSettings
import org.rootlet.fleet.Trained

/**
 * This phone's part in the federation that its owner joined: rounds of plain averaging, and rounds that protect the
 * device by differential privacy. The session's lock is held while a round trains, not while the phone waits.
 */
class Federation(private val context: Context) {
    private val folder: File = context.filesDir

    /** Why the phone does not take part now; empty where it may. The job's own constraints are met already. */
    fun reasonsAgainst(): List<String> = Session.use(context) { session ->
        val battery = context.getSystemService(BatteryManager::class.java)
        val level = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY) / 100.0
        val now = DeviceConditions(charging = true, batteryLevel = level, unmetered = true, idle = true, paused = session.settings.paused)
        val minute = (System.currentTimeMillis() / 60_000 % 1440).toInt() // UTC: no quiet hours are set
        ParticipationPolicy(maxRoundsPerDay = MOST_ROUNDS).reasonsAgainst(now, minute, session.roundsToday())
    } + if (taught()) emptyList() else listOf("nothing was taught yet")

    /** Takes part until [stop]; every answer is in the ledger before it leaves. */
    fun run(stop: StopSignal) {
        val (settings, identity) = Session.use(context) { it.settings to it.work }
        val certificate = settings.certificate.takeIf { it.isNotBlank() }?.toByteArray()
        val connection = FleetConnection.open(settings.server, KeystoreNodeKey(), certificate)
        val (ledger, account) = Session.use(context) { it.ledger to it.account }
        val participant = Participant(Locked(identity), account = account)
        val ledgered = Ledgered(participant, ledger, settings.server, "${identity.bundle.name} ${identity.bundle.version}", account)
        FleetSession(connection, ledgered, Mailbox(File(folder, "mailbox")), lingerS = 20.0).run(stop)
    }

    private fun taught() = Session.use(context) { it.taught > 0 }

    /** The session's work, with its lock. */
    private inner class Locked(identity: RoundWork) : RoundWork by identity {
        override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained? =
            Session.use(context) { session -> session.work.train(adapter, settings, shouldStop).also { if (it != null) session.keep() } }

        override fun evaluate(adapter: Adapter): Measured = Session.use(context) { it.work.evaluate(adapter) }
    }

    private companion object {
        const val MOST_ROUNDS = 100
    }
}
