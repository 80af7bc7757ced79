package org.rootlet.device

import java.io.File
import java.util.Calendar
import org.rootlet.fleet.Answer
import org.rootlet.fleet.Answerer
import org.rootlet.fleet.EventKind
import org.rootlet.fleet.FleetConnection
import org.rootlet.fleet.FleetEvent
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.FleetSession
import org.rootlet.fleet.Mailbox
import org.rootlet.fleet.NodeKey
import org.rootlet.fleet.Participant
import org.rootlet.fleet.StopSignal
import org.rootlet.privacy.PrivacyAccount

/** How a turn of taking part ended. [reasons] are those of the policy, where it was against it. */
data class TurnEnded(val answered: Int, val reasons: List<String>)

/**
 * One turn of taking part in a federation, as long as a phone's job scheduler lets a job run: while the policy
 * allows it, answer what the server asks, and write down what leaves before it leaves.
 *
 * A request that is under way at the end stays in the mailbox, and the next turn goes on with it.
 *
 * @param folder of the device; ledger and mailbox lie there.
 * @param bundle name and version, for the ledger.
 * @param conditions what holds on the phone now; read before the turn and before each answer.
 * @param lingerS longest wait for the server to read the last replies.
 */
class FederationJob(
    private val settings: FederationSettings,
    private val folder: File,
    private val bundle: String,
    private val policy: ParticipationPolicy,
    private val conditions: () -> DeviceConditions,
    private val lingerS: Double = 20.0,
    private val onEvent: (FleetEvent) -> Unit = {},
) {
    /**
     * Takes part until [stop] is set, or the policy is against it.
     *
     * @param key identifies this device; [participant] answers.
     * @param account counts what private answers spend; the participant's own.
     * @throws LedgerError the ledger is broken or cannot be kept: nothing leaves.
     * @throws org.rootlet.fleet.FleetError a lasting refusal of the server.
     */
    fun run(key: NodeKey, participant: Participant, stop: StopSignal, account: PrivacyAccount = PrivacyAccount()): TurnEnded {
        val ledger = Ledger(ledgerFolder(folder))
        reasons().let { if (it.isNotEmpty()) return TurnEnded(0, it) }
        var answered = 0
        val gate = PolicyGate(Ledgered(participant, ledger, settings.address, bundle, account), ::reasons, stop)
        val connection = FleetConnection.open(settings.address, key, settings.authorityPem?.toByteArray())
        FleetSession(connection, gate, Mailbox(File(folder, MAILBOX)), lingerS) {
            if (it.kind == EventKind.PUSHED) answered++
            onEvent(it)
        }.run(stop)
        return TurnEnded(answered, gate.against)
    }

    private fun reasons(): List<String> {
        val now = Calendar.getInstance()
        val minute = 60 * now.get(Calendar.HOUR_OF_DAY) + now.get(Calendar.MINUTE)
        return policy.reasonsAgainst(conditions(), minute, LedgerSummary.roundsToday(Ledger.read(ledgerFolder(folder)), now))
    }

    companion object {
        const val MAILBOX = "mailbox"

        /** Where a device's ledger lies. */
        fun ledgerFolder(folder: File) = File(folder, "ledger")
    }
}

/** Asks for [reasons] against it before each answer; where there are any, the request waits in the mailbox. */
class PolicyGate(
    private val answerer: Answerer,
    private val reasons: () -> List<String>,
    private val stop: StopSignal,
) : Answerer {
    /** The reasons that ended it; empty without any. */
    var against: List<String> = emptyList()
        private set

    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        against = reasons()
        if (against.isEmpty()) return answerer.answer(request, shouldStop)
        stop.set()
        return null
    }
}
