package org.rootlet.fleet

import java.io.Closeable

/**
 * Sends heartbeats in the background until it is closed, so that a device that trains for minutes
 * stays online.
 *
 * A heartbeat puts a node online, also one that has just been deactivated: closing waits for one under
 * way, so that none can follow a deactivation.
 */
internal class Heartbeat(private val connection: FleetConnection) : Closeable {
    /** Set when the server no longer knows the node or refuses its signature. */
    val lost = StopSignal()
    private val stop = StopSignal()
    private val thread = Thread(::run, "rootlet-heartbeat").apply {
        isDaemon = true
        start()
    }

    override fun close() {
        stop.set()
        thread.join()
    }

    private fun run() {
        var due = SENT_AT
        while (!stop.await(due * connection.heartbeatIntervalS)) {
            due = try {
                if (!connection.heartbeat()) lost.set()
                SENT_AT
            } catch (error: FleetError) {
                if (!error.retryable) lost.set()
                RETRIED_AT
            }
        }
    }

    private companion object {
        /** Fraction of the interval after which the next heartbeat is due. */
        const val SENT_AT = 0.8

        /** Fraction of the interval after which a failed heartbeat is repeated. */
        const val RETRIED_AT = 0.2
    }
}
