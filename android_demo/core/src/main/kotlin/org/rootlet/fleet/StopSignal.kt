package org.rootlet.fleet

import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/** Tells threads to stop, and ends their waits; it cannot be taken back. */
class StopSignal {
    private val latch = CountDownLatch(1)

    /** Whether [set] was called. */
    val isSet: Boolean get() = latch.count == 0L

    /** Stops whoever waits. */
    fun set() = latch.countDown()

    /** Waits for so many seconds, or until [set]; returns whether it is set. */
    fun await(seconds: Double): Boolean = latch.await((seconds * 1e9).toLong(), TimeUnit.NANOSECONDS)
}
