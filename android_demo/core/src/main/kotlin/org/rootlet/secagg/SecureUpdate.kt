package org.rootlet.secagg

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.fleet.Adapter
import org.rootlet.wire.CanonicalJson.general

/**
 * From an adapter's update to the whole numbers that a device adds to a sum.
 *
 * Without noise each value saturates at the plan's bound. With noise (Kairouz et al. 2021, algorithm 1) the update
 * x in R^d is clipped, scaled, rotated and rounded, and a discrete Gaussian is added:
 *
 *     x' = s R x min(1, C / ||x||),   q = round(x'), again until ||q|| <= longest,   q + N_Z(0, 4^b)
 *
 * so that one device changes the sum of all by at most [NoisePlan.longest], whatever it computed.
 */
internal object SecureUpdate {
    /** Each rounding is short enough with a probability of 0.39 at least: a thousand fail once in 10^200. */
    private const val MOST_ROUNDINGS = 1000

    /** Trained less received, as one vector in the order of the arrays' names. */
    fun difference(trained: Adapter, received: Adapter): FloatArray {
        val values = trained.keys.sorted().map { name -> trained.getValue(name).floats() to received.getValue(name).floats() }
        val flat = FloatArray(values.sumOf { it.first.size })
        var at = 0
        for ((after, before) in values) for (i in after.indices) flat[at++] = after[i] - before[i]
        return flat
    }

    /**
     * The whole numbers of an update, with its share of the noise, [d].
     *
     * @param randomBytes the generator of roundings and noise; another one in tests with known answers only.
     * @throws SecureRoundRefusedError no rounding is short enough: the plan's numbers do not fit.
     */
    fun encode(update: FloatArray, plan: SecurePlan, randomBytes: (Int) -> ByteArray = Entropy::bytes): IntArray {
        val noise = plan.noise
            ?: return Whole.quantise(update, plan.unitInverse, plan.valueBits.toInt(), randomBytes(Whole.KEY_BYTES))
        val rounded = rounded(clipped(update, noise.clipNorm), plan, noise, randomBytes)
        val draws = DiscreteGaussian(noise.scaleBits.toInt(), randomBytes = randomBytes).draw(update.size)
        return IntArray(update.size) { rounded[it] + draws[it].toInt() }
    }

    /** `x min(1, C / ||x||)`; an update that is not finite becomes zero. */
    fun clipped(update: FloatArray, norm: Double): DoubleArray {
        val wide = DoubleArray(update.size) { update[it].toDouble() }
        if (wide.any { !it.isFinite() }) return DoubleArray(update.size)
        val length = Math.sqrt(wide.sumOf { it * it })
        if (length > norm) for (i in wide.indices) wide[i] *= norm / length
        return wide
    }

    private fun rounded(update: DoubleArray, plan: SecurePlan, noise: NoisePlan, randomBytes: (Int) -> ByteArray): IntArray {
        val scaled = Whole.rotate(update, plan.digest)
        for (i in scaled.indices) scaled[i] *= noise.unitInverse
        val longest = noise.longest(plan.values)
        val largest = Whole.largestValue(plan.valueBits.toInt())
        repeat(MOST_ROUNDINGS) {
            val words = ByteBuffer.wrap(randomBytes(4 * scaled.size)).order(ByteOrder.LITTLE_ENDIAN)
            val whole = IntArray(scaled.size) { i ->
                val low = Math.floor(scaled[i])
                val up = (words.getInt(4 * i).toLong() and 0xffffffffL) / TWO_32 < scaled[i] - low
                minOf(maxOf((if (up) low + 1 else low).toInt(), -largest), largest)
            }
            if (Math.sqrt(whole.sumOf { it.toDouble() * it }) <= longest) return whole
        }
        refuse(
            "no rounding of the update is within ${general(longest, 4)} units: the plan's unit_inverse ${general(noise.unitInverse)} is too small for " +
                "${plan.values} values",
        )
    }

    private const val TWO_32 = 4294967296.0
}
