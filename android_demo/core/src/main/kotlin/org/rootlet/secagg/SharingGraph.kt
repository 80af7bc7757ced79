package org.rootlet.secagg

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.wire.sha256

/**
 * Who shares secrets with whom (Bell et al. 2020): a random regular graph that nobody chooses.
 *
 * The places of the roster are shuffled by the keystream of the roster's own hash, laid out on a ring, and each is
 * joined to the k / 2 places on either side. Every honest device puts fresh keys into the roster, so nobody can
 * choose its neighbours; each device checks that its own are those of the graph.
 */
internal object SharingGraph {
    private const val COMPLETE_UP_TO = 64

    /**
     * The neighbours of one place, sorted, without the place itself.
     *
     * @param context SHA-256 of the roster.
     * @param devices n.
     * @param degree k, even; from n - 1 on the graph is complete.
     */
    fun neighbours(context: ByteArray, devices: Int, degree: Int, place: Int): List<Int> {
        if (degree >= devices - 1) return (0 until devices).filter { it != place }
        val ring = shuffled(context, devices)
        val at = ring.indexOf(place)
        return (-degree / 2..degree / 2).map { ring[Math.floorMod(at + it, devices)] }.filter { it != place }.sorted()
    }

    /** Fisher-Yates by 64-bit words of a keystream; the remainder's bias is below 2^-44. */
    private fun shuffled(context: ByteArray, devices: Int): IntArray {
        val key = sha256(RoundKeys.DOMAIN, "graph".toByteArray(), context)
        val words = ByteBuffer.wrap(Masks.keystream(key, 8 * devices)).order(ByteOrder.LITTLE_ENDIAN)
        val order = IntArray(devices) { it }
        for (last in devices - 1 downTo 1) {
            val other = java.lang.Long.remainderUnsigned(words.getLong(8 * last), last + 1L).toInt()
            order[last] = order[other].also { order[other] = order[last] }
        }
        return order
    }

    /** The least k for so many devices: complete up to 64, then 32 at 100 and 96 at 1,000 (Bell et al. 2020, table 1). */
    fun degreeFor(devices: Int): Int = when {
        devices <= COMPLETE_UP_TO -> devices - 1
        devices <= 128 -> 32
        devices <= 512 -> 64
        else -> 96
    }

    /**
     * t: more than two thirds of those who hold a device's shares, itself among them. Two different sets of living
     * devices can then not both find t signatures unless a third of the holders sign both.
     */
    fun thresholdFor(devices: Int, degree: Int): Int = 2 * minOf(devices, degree + 1) / 3 + 1
}
