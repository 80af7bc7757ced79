package org.rootlet.fleet

/**
 * This device's clock, plus a correction once the server has refused it.
 *
 * Only what Flower itself dates is corrected (the signed timestamp and a reply's creation time); the
 * device's own clock is never touched.
 *
 * @param device seconds since the epoch.
 */
class ServerClock(private val device: () -> Double = { System.currentTimeMillis() / 1000.0 }) {
    /** Server's time minus this device's, in seconds; 0 until a correction. */
    @Volatile
    var offsetS: Double = 0.0
        private set

    /** Called with the new [offsetS] after each correction. */
    @Volatile
    var onCorrection: (Double) -> Unit = {}

    /** The server's time, in seconds since the epoch. */
    fun now(): Double = device() + offsetS

    /** Moves the correction by [differenceS]: server's time minus [now], in seconds. */
    fun correct(differenceS: Double) {
        val corrected = synchronized(this) {
            offsetS += differenceS
            offsetS
        }
        onCorrection(corrected)
    }
}
