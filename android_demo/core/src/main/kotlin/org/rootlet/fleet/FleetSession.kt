package org.rootlet.fleet

import kotlin.math.abs
import kotlin.math.max
import kotlin.math.min

/** Who answers the requests. */
fun interface Answerer {
    /**
     * The answer; null where [shouldStop] interrupted the work. It must not throw: a failure is an
     * [Answer] with an error.
     */
    fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer?
}

/**
 * One device's participation in whatever runs its server starts: online, poll, answer, push, and leave
 * without losing the last reply.
 *
 * A state machine over its [Mailbox]: each step moves the current message one stage on and may be
 * repeated, after a lost connection as well as after a restart.
 *
 * @param lingerS longest wait for the last replies to be read when leaving, in seconds.
 * @param activationWaitS longest wait for a server that still counts this node as online, in seconds.
 * @param onEvent called from the thread that runs this, except for corrections of the clock.
 */
class FleetSession(
    private val connection: FleetConnection,
    private val participant: Answerer,
    private val mailbox: Mailbox = Mailbox(),
    private val lingerS: Double = 60.0,
    private val activationWaitS: Double = 2 * connection.heartbeatIntervalS + 5.0,
    private val onEvent: (FleetEvent) -> Unit = {},
) {
    private val pushed = ArrayDeque<SealedReply>()

    /**
     * Participates until [stop] is set, then leaves.
     *
     * Leaving keeps the node online until the server has read the replies ([lingerS] at most), because
     * Flower drops the replies of a node that is offline.
     *
     * @throws NodeStillActiveError the server did not activate the node in time.
     * @throws AuthenticationError the server refuses this node's signature.
     * @throws FleetError any other lasting refusal. A connection that fails is retried until [stop].
     * @throws java.io.IOException the mailbox's disk refuses.
     */
    fun run(stop: StopSignal) {
        connection.clock.onCorrection = ::clockCorrected
        var online = false
        try {
            while (!stop.isSet && goOnline(stop)) {
                online = true
                Heartbeat(connection).use { heartbeat ->
                    serve(stop, heartbeat)
                    if (stop.isSet) {
                        pushWhatIsReady(stop)
                        linger()
                    }
                }
            }
        } finally {
            if (online) leave()
        }
    }

    /** Resumes or activates; returns whether that happened before [stop]. */
    private fun goOnline(stop: StopSignal): Boolean {
        val publicKey = connection.nodeKey.publicPem
        val known = mailbox.nodeId(connection.address, publicKey)
        val deadline = seconds() + activationWaitS
        val outage = Outage(stop)
        var told = false
        while (!stop.isSet) {
            try {
                if (known != 0L && connection.resume(known)) {
                    emit(EventKind.RESUMED, "as node ${unsigned(known)}")
                    return true
                }
                val id = connection.activate()
                mailbox.rememberNode(connection.address, publicKey, id)
                emit(EventKind.ACTIVATED, "as node ${unsigned(id)}")
                return true
            } catch (error: NodeStillActiveError) {
                val left = deadline - seconds()
                if (left <= 0) throw error
                if (!told) emit(EventKind.WAITING_TO_ACTIVATE, "${error.message}; waits ${left.toInt()} s at most")
                told = true
                stop.await(min(left, 2.0))
            } catch (error: ConnectionFailedError) {
                outage.wait(error)
            }
        }
        return false
    }

    /** Moves messages on until [stop] is set or the server forgets the node. */
    private fun serve(stop: StopSignal, heartbeat: Heartbeat) {
        val outage = Outage(stop)
        var lastMessage = seconds()
        if (mailbox.stage != Stage.EMPTY) emit(EventKind.RECOVERED, "at stage ${mailbox.stage}")
        while (!stop.isSet && !heartbeat.lost.isSet) {
            try {
                val moved = step(stop)
                outage.over()
                // The wait costs a federation at most this fraction of the time that it let the device wait.
                if (moved) lastMessage = seconds() else stop.await(min(5.0, max(0.2, 0.05 * (seconds() - lastMessage))))
            } catch (error: ConnectionFailedError) {
                outage.wait(error)
            } catch (_: AuthenticationError) {
                heartbeat.lost.set()
            }
        }
    }

    /** Moves the current message one stage on; returns whether there was one. */
    private fun step(stop: StopSignal): Boolean {
        val envelope = mailbox.envelope
        try {
            if (envelope == null) return pull()
            if (envelope.metadata.targetNodeId != connection.nodeId) {
                throw MessageGoneError("it was sent to a former id of this node")
            }
            if (envelope.expiresAt <= connection.clock.now()) throw MessageGoneError("it has expired")
            when (mailbox.stage) {
                Stage.PULLED -> {
                    mailbox.fetched(connection.fetch(envelope))
                    connection.confirmMessageReceived(envelope)
                }
                Stage.FETCHED -> answer(envelope, stop)
                else -> push(envelope)
            }
        } catch (error: FleetError) {
            if (error !is RunEndedError && error !is MessageGoneError && error !is ProtocolError) throw error
            emit(EventKind.DROPPED, "${error.message}", envelope)
            mailbox.clear()
            return envelope != null // a refused question is no work: ask again after a wait
        }
        return true
    }

    private fun pull(): Boolean {
        val envelope = connection.pullMessages() ?: return false
        mailbox.pulled(envelope)
        emit(EventKind.PULLED, "", envelope)
        return true
    }

    private fun answer(envelope: Envelope, stop: StopSignal) {
        val answer = try {
            participant.answer(envelope.open(mailbox.contents, connection.limits)) { stop.isSet }
        } catch (error: ProtocolError) {
            Answer(emptyMap(), "${error.message}", ERROR_MALFORMED)
        } ?: return
        mailbox.answered(envelope.seal(answer, connection.clock.now()))
        emit(EventKind.ANSWERED, answer.error, envelope)
    }

    private fun push(envelope: Envelope) {
        val reply = checkNotNull(mailbox.reply) { "the stage ANSWERED has a reply" }
        if (connection.push(reply)) {
            pushed.addLast(reply)
            if (pushed.size > REMEMBERED_REPLIES) pushed.removeFirst()
            emit(EventKind.PUSHED, "", envelope)
        } else {
            emit(EventKind.DROPPED, "the server no longer wants the reply", envelope)
        }
        mailbox.clear()
    }

    /** Tries once to push a reply that was answered before the stop; it stays in the mailbox. */
    private fun pushWhatIsReady(stop: StopSignal) {
        if (mailbox.stage != Stage.ANSWERED) return
        try {
            step(stop)
        } catch (error: ConnectionFailedError) {
            emit(EventKind.CONNECTION_LOST, "${error.message}; the reply is kept for later")
        } catch (error: AuthenticationError) {
            emit(EventKind.CONNECTION_LOST, "${error.message}; the reply is kept for later")
        }
    }

    /** Stays until the server has read the replies. */
    private fun linger() {
        if (pushed.isEmpty()) return
        val before = seconds()
        var waiting: List<SealedReply> = pushed.toList()
        var failures = 0
        while (waiting.isNotEmpty() && failures < LINGER_FAILURES) {
            try {
                waiting = waiting.filterNot(connection::taken)
                failures = 0
            } catch (error: FleetError) {
                failures = if (error.retryable) failures + 1 else LINGER_FAILURES
            }
            if (seconds() - before >= lingerS) break
            if (waiting.isNotEmpty()) Thread.sleep(LINGER_POLL_MS)
        }
        if (waiting.isEmpty()) return emit(EventKind.TAKEN)
        val reason = if (failures > 0) "the server is gone" else "nobody read them"
        emit(EventKind.DROPPED, "${waiting.size} replies may be lost: $reason in ${(seconds() - before).toInt()} s")
    }

    private fun leave() {
        try {
            connection.deactivate()
            emit(EventKind.DEACTIVATED)
        } catch (error: ConnectionFailedError) {
            emit(EventKind.DEACTIVATED, "without telling the server: ${error.message}")
        } catch (error: AuthenticationError) {
            emit(EventKind.DEACTIVATED, "without telling the server: ${error.message}")
        }
    }

    private fun emit(kind: EventKind, detail: String = "", envelope: Envelope? = null) =
        onEvent(FleetEvent(kind, detail, envelope?.metadata?.runId ?: 0, envelope?.metadata?.messageType.orEmpty()))

    private fun clockCorrected(offsetS: Double) = emit(
        EventKind.CLOCK_CORRECTED,
        "this device's clock is ${Math.round(abs(offsetS))} s ${if (offsetS > 0) "behind" else "ahead"}; signatures " +
            "use the server's time, but please set the clock",
    )

    /** A connection that fails: reported once, waited out ever longer. */
    private inner class Outage(private val stop: StopSignal) {
        private var waitS = 0.0

        fun wait(error: ConnectionFailedError) {
            if (waitS == 0.0) emit(EventKind.CONNECTION_LOST, "${error.message}")
            waitS = if (waitS == 0.0) 1.0 else min(RECONNECT_MAX_S, 2 * waitS)
            stop.await(waitS)
        }

        fun over() {
            if (waitS != 0.0) emit(EventKind.CONNECTION_RESTORED)
            waitS = 0.0
        }
    }

    private companion object {
        const val RECONNECT_MAX_S = 30.0
        const val REMEMBERED_REPLIES = 8
        const val LINGER_POLL_MS = 500L

        /** Unanswered looks after which a leaving device takes the server for gone. */
        const val LINGER_FAILURES = 10

        fun seconds(): Double = System.nanoTime() / 1e9
    }
}
