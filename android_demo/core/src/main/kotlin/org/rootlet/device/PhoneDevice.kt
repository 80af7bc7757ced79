package org.rootlet.device

import java.io.File
import org.rootlet.bundle.Bundle
import org.rootlet.fleet.FleetEvent
import org.rootlet.fleet.NodeKey
import org.rootlet.fleet.Participant
import org.rootlet.fleet.StopSignal
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.privacy.PrivacyPolicy

/** What a turn of background work came to: a sentence for the screen, and whether another is wanted. */
data class Turn(val told: String, val again: Boolean)

/**
 * All that a phone's app keeps and does, behind its screen and its background job: one learner, one switch, one
 * server at most, one ledger. What lies where is this class's own matter.
 *
 * Calls may come from any thread.
 *
 * @param folder private to the app.
 * @param open opens the bundle, verified.
 * @param battery reads the battery's gauge.
 * @param privacy what private rounds may spend.
 */
class PhoneDevice(
    private val folder: File,
    private val open: () -> Bundle,
    private val battery: () -> BatteryReading = { BatteryReading() },
    private val privacy: PrivacyPolicy = PrivacyPolicy(),
) {
    private val working = Any()
    private val told = PrivateFile(File(folder, "turn"))
    private val switch = PrivateFile(File(folder, PAUSED))
    private var opened: Learner? = null

    @Volatile
    private var underWay: StopSignal? = null

    /** The learner, opened at the first call. @throws org.rootlet.RootletException the bundle is refused. */
    val learner: Learner @Synchronized get() = opened ?: opened().also { opened = it }

    /** Whether the user paused all background work; kept, and a turn under way ends when it is set. */
    var paused: Boolean
        get() = switch.read() != null
        set(value) {
            if (value) switch.write(ByteArray(0)) else switch.delete()
            if (value) underWay?.set()
        }

    /** The server that this device takes part at; null for none. A turn under way ends when it changes. */
    var federation: FederationSettings?
        get() = FederationSettings.load(folder)
        set(value) {
            underWay?.set()
            if (value == null) FederationSettings.forget(folder) else value.save(folder)
        }

    /** What the last turn came to; empty without any. */
    val lastTurn: String get() = told.read()?.toString(Charsets.UTF_8).orEmpty()

    /** What left this device. @throws LedgerError the ledger is broken. */
    fun left(): LedgerSummary = LedgerSummary.of(Ledger.read(FederationJob.ledgerFolder(folder)))

    /**
     * Background work until [stop] is set: a turn in the federation, or training alone where there is none.
     *
     * @param key opens the node key; asked for in a federation only.
     */
    fun work(
        stop: StopSignal,
        policy: ParticipationPolicy,
        conditions: () -> DeviceConditions,
        key: () -> NodeKey,
        onEvent: (FleetEvent) -> Unit = {},
    ): Turn = synchronized(working) {
        underWay = stop
        try {
            val settings = federation
            val turn = when {
                paused -> Turn("Paused.", again = false)
                settings == null -> alone(stop)
                else -> takePart(settings, stop, policy, { conditions().copy(paused = paused) }, key, onEvent)
            }
            told.write(turn.told.toByteArray())
            return turn
        } catch (error: Exception) { // the app's own background: it must live on, and say what it was
            val turn = Turn("The last turn failed: ${error.message ?: error.javaClass.simpleName}", again = federation != null)
            told.write(turn.told.toByteArray())
            return turn
        } finally {
            underWay = null
        }
    }

    /**
     * Erases the examples, what was learnt, the message under way, the energy account and the server; and by
     * [forgetKey] the node key. A turn under way ends first. The ledger stays: what left the phone cannot be taken
     * back, and is still told. So does the pause.
     */
    fun erase(forgetKey: () -> Unit) {
        underWay?.set()
        synchronized(working) {
            synchronized(this) {
                opened?.close()
                opened = null
            }
            val kept = setOf(FederationJob.ledgerFolder(folder), File(folder, PAUSED))
            folder.listFiles().orEmpty().filter { it !in kept }.forEach { it.deleteRecursively() }
            forgetKey()
        }
    }

    private fun opened(): Learner {
        val bundle = open()
        try {
            return Learner(bundle, folder, battery = battery)
        } catch (error: Exception) {
            bundle.close()
            throw error
        }
    }

    private fun alone(stop: StopSignal): Turn {
        val before = learner.examples.count
        val learnt = learner.train { !stop.isSet }
        return when {
            before == 0 -> Turn("There was nothing to learn from yet.", again = false)
            learnt == null -> Turn("Training was interrupted; it goes on from where it was.", again = true)
            else -> Turn("Trained on this phone.", again = false)
        }
    }

    private fun takePart(
        settings: FederationSettings,
        stop: StopSignal,
        policy: ParticipationPolicy,
        conditions: () -> DeviceConditions,
        key: () -> NodeKey,
        onEvent: (FleetEvent) -> Unit,
    ): Turn {
        val learner = learner
        if (learner.examples.count == 0) return Turn("Teach it something first: there was nothing to take part with.", again = true)
        val job = FederationJob(settings, folder, learner.name, policy, conditions, onEvent = onEvent)
        val account = PrivacyAccount(privacy, Ledger.read(FederationJob.ledgerFolder(folder)).map { it.fields })
        val ended = job.run(key(), Participant(learner.roundWork(), account = account), stop, account)
        val sent = "${ended.answered} answers were sent to ${settings.address}."
        return Turn(if (ended.reasons.isEmpty()) sent else "$sent Waits: ${ended.reasons.joinToString(", ")}.", again = true)
    }

    private companion object {
        const val PAUSED = "paused"
    }
}
