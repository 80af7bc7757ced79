package org.rootlet.fleet

import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/** Who answers the server's requests; null where [shouldStop] interrupted the work. */
fun interface Answering {
    fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer?
}

/**
 * One device's participation: online, poll, answer, push, and leave without losing the last reply.
 *
 * The message under way lies in memory: a process that dies loses it, and the server counts the device as one
 * that failed. The node id should be kept by the app ([knownNodeId]), or a device that died is locked out for two
 * heartbeat intervals.
 *
 * @param knownNodeId what the last session's connection had; 0 for none.
 * @param lingerS how long a leaving device waits for its last reply to be read, in seconds, because Flower drops
 * the replies of a node that is offline.
 * @param onEvent told what happens, in plain words, from the session's thread.
 */
class FleetSession(
    private val connection: FleetConnection,
    private val device: Answering,
    private val knownNodeId: Long = 0,
    private val lingerS: Double = 60.0,
    private val onEvent: (String) -> Unit = {},
) {
    private val stopped = CountDownLatch(1)
    private var lastReply: SealedReply? = null

    /** Ends [run] soon: the work under way is interrupted between two steps, a finished reply still sent. */
    fun stop() = stopped.countDown()

    private val stopping: Boolean get() = stopped.count == 0L

    /**
     * Takes part until [stop] is called, then leaves.
     *
     * @throws NodeStillActiveError the server did not activate the node in two heartbeat intervals.
     * @throws AuthenticationError the server refuses this node's signature.
     * @throws FleetException any other lasting refusal; a connection that fails is tried again until [stop].
     */
    fun run() {
        var online = false
        try {
            while (!stopping && goOnline()) {
                online = true
                Heartbeat().use { serve(it) }
            }
            linger()
        } finally {
            if (online) leave()
        }
    }

    private fun goOnline(): Boolean {
        val deadline = System.nanoTime() + ((2 * connection.heartbeatS + 5) * 1e9).toLong()
        var pause = 1L
        while (!stopping) {
            try {
                if (knownNodeId == 0L || !connection.resume(knownNodeId)) connection.activate()
                onEvent("online as node ${java.lang.Long.toUnsignedString(connection.nodeId)}")
                return true
            } catch (error: NodeStillActiveError) {
                if (System.nanoTime() > deadline) throw error
                wait(2.0)
            } catch (error: ConnectionFailedError) {
                onEvent("waiting: ${error.message}")
                wait(pause.toDouble())
                pause = minOf(30, 2 * pause)
            }
        }
        return false
    }

    private fun serve(heartbeat: Heartbeat) {
        var last = System.nanoTime()
        var pause = 1L
        while (!stopping && !heartbeat.lost) {
            try {
                val envelope = connection.pullMessages()
                pause = 1
                if (envelope == null) {
                    wait(((System.nanoTime() - last) / 1e9 * 0.05).coerceIn(0.2, 5.0))
                } else {
                    handle(envelope)
                    last = System.nanoTime()
                }
            } catch (error: ConnectionFailedError) {
                onEvent("connection lost: ${error.message}")
                wait(pause.toDouble())
                pause = minOf(30, 2 * pause)
            } catch (error: FleetException) {
                if (error is AuthenticationError) return
                if (error !is RunEndedError && error !is MessageGoneError && error !is ProtocolError) throw error
                onEvent("dropped: ${error.message}")
                wait(0.2)
            }
        }
    }

    private fun handle(envelope: Envelope) {
        onEvent("asked to ${envelope.metadata.messageType}")
        val contents = retried { connection.fetch(envelope) }
        val answer = try {
            device.answer(openEnvelope(envelope, contents, connection.limits)) { stopping }
        } catch (error: ProtocolError) {
            Answer(emptyMap(), error.message ?: "malformed", RoundProtocol.ERROR_MALFORMED)
        } ?: return
        if (envelope.expiresAt <= connection.now) throw MessageGoneError("it has expired")
        val reply = sealReply(envelope, answer, connection.now)
        if (retried { connection.push(reply) }) {
            lastReply = reply
            onEvent(if (answer.error.isEmpty()) "answered" else "answered with an error: ${answer.error}")
        } else {
            onEvent("dropped: the server no longer wants the reply")
        }
    }

    /** A call that is safe to repeat, until it gets through or the session stops. */
    private fun <T> retried(call: () -> T): T {
        var pause = 1L
        while (true) {
            try {
                return call()
            } catch (error: ConnectionFailedError) {
                if (stopping) throw error
                wait(pause.toDouble())
                pause = minOf(30, 2 * pause)
            }
        }
    }

    private fun linger() {
        val reply = lastReply ?: return
        val deadline = System.nanoTime() + (lingerS * 1e9).toLong()
        var failures = 0
        while (System.nanoTime() < deadline && failures < LOST_AFTER) {
            try {
                if (connection.taken(reply)) return
                failures = 0
            } catch (error: FleetException) {
                failures += if (error.retryable) 1 else LOST_AFTER
            }
            Thread.sleep(500)
        }
        onEvent("the last reply may be lost: nobody read it in ${lingerS.toInt()} s")
    }

    private fun leave() = try {
        connection.deactivate()
    } catch (error: FleetException) {
        onEvent("left without telling the server: ${error.message}")
    }

    private fun wait(seconds: Double) {
        stopped.await((seconds * 1000).toLong(), TimeUnit.MILLISECONDS)
    }

    /** Heartbeats in the background, so that a device that trains for minutes stays online; none after [close]. */
    private inner class Heartbeat : AutoCloseable {
        @Volatile
        var lost = false
        private val ended = CountDownLatch(1)
        private val thread = Thread(::beat, "rootlet-heartbeat").apply {
            isDaemon = true
            start()
        }

        override fun close() {
            ended.countDown()
            thread.join()
        }

        private fun beat() {
            var due = 0.8
            while (!ended.await((due * connection.heartbeatS * 1000).toLong(), TimeUnit.MILLISECONDS)) {
                due = try {
                    if (!connection.heartbeat()) lost = true
                    0.8
                } catch (error: FleetException) {
                    if (!error.retryable) lost = true
                    0.2
                }
            }
        }
    }

    private companion object {
        /** Unanswered looks after which a leaving device takes the server for gone; each has tried for some seconds. */
        const val LOST_AFTER = 2
    }
}
