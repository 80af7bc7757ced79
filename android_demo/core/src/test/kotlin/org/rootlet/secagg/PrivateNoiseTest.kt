package org.rootlet.secagg

import java.io.File
import java.security.SecureRandom
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.wire.sha256

/** The noise of private rounds: its distribution from a seeded source, and where its bytes come from. */
class PrivateNoiseTest {
    @Test
    fun drawsHaveTheProbabilitiesOfTheDiscreteGaussian() {
        for (bits in listOf(0, 2, 6, 12)) {
            val scale = (1 shl bits).toDouble()
            val draws = DiscreteGaussian(bits, randomBytes = seeded("draws $bits")).draw(DRAWS)
            assertTrue("scale $scale", chiSquare(draws, scale) < MOST)
            assertFalse("one of ${1.05 * scale} would not be told from $scale", chiSquare(draws, 1.05 * scale) < MOST)
        }
    }

    @Test
    fun aDeviceAddsTheNoiseOfThePlanToEachOfItsValues() {
        val whole = SecureUpdate.encode(FloatArray(VALUES), noisy, seeded("nothing learnt"))
        val sizes = whole.sumOf { it.toDouble() * it } / (64.0 * 64.0)
        assertEquals(VALUES.toDouble(), sizes, 5 * Math.sqrt(2.0 * VALUES)) // five standard deviations of chi-square
        assertEquals(0.0, whole.average(), 5 * 64 / Math.sqrt(VALUES.toDouble()))
    }

    @Test
    fun whateverADeviceComputedItAddsNoMoreThanThePlanSays() {
        val longest = noisy.noise!!.longest(VALUES.toLong())
        val spike = FloatArray(VALUES).also { it[7] = 1e30f }
        for (wild in listOf(FloatArray(VALUES) { 1e30f }, FloatArray(VALUES) { Float.NaN }, spike, FloatArray(VALUES))) {
            val whole = SecureUpdate.encode(wild, noisy, seeded("wild"))
            // From the same source: each rounding takes 4 bytes a value, and the noise what follows the last of them.
            val roundings = (1..20).map { tries ->
                val after = seeded("wild").also { it(4 * VALUES * tries) }
                val noise = DiscreteGaussian(6, randomBytes = after).draw(VALUES)
                length(IntArray(VALUES) { whole[it] - noise[it].toInt() })
            }
            assertTrue("lengths $roundings, of which one is at most $longest", roundings.any { it <= longest })
            assertEquals(1, roundings.count { it <= longest + 64 }) // any other noise would show
        }
    }

    @Test
    fun theNoiseOfTwoDevicesAndOfTwoRoundsIsIndependent() {
        val (first, second) = List(2) { SecureUpdate.encode(FloatArray(VALUES), noisy) }
        val product = first.indices.sumOf { first[it].toDouble() * second[it] }
        assertTrue(Math.abs(product / (length(first) * length(second))) < 5 / Math.sqrt(VALUES.toDouble()))
        assertFalse(first.contentEquals(second))
    }

    @Test
    fun bytesAreThePlatformsSecureOnes() {
        assertEquals(SecureRandom::class.java, Entropy.source.javaClass)
        assertFalse("${Entropy.source.algorithm} repeats what its seed gives", Entropy.source.algorithm == "SHA1PRNG")
        val bytes = Entropy.bytes(1 shl 18)
        val counts = IntArray(256)
        for (byte in bytes) counts[byte.toInt() and 0xff]++
        val expected = bytes.size / 256.0
        val chi = counts.sumOf { (it - expected) * (it - expected) / expected }
        assertTrue("chi-square $chi of 255 degrees", chi > 255 - 6 * Math.sqrt(510.0) && chi < 255 + 6 * Math.sqrt(510.0))
        assertFalse(bytes.contentEquals(Entropy.bytes(bytes.size)))
    }

    @Test
    fun nothingOfASecureRoundIsDrawnElsewhere() {
        val sources = File(System.getProperty("rootlet.repository"), "android_demo/core/src/main/kotlin/org/rootlet")
        val files = listOf("secagg", "privacy").flatMap { File(sources, it).listFiles()!!.toList() }
        val generator = Regex("\\w*Random\\b|kotlin\\.random|setSeed|randomUUID")
        val found = files.associate { file -> file.name to generator.findAll(file.readText()).map { it.value }.toSet() }
        assertEquals(mapOf("Entropy.kt" to setOf("SecureRandom")), found.filterValues { it.isNotEmpty() })
    }

    private fun length(values: IntArray) = Math.sqrt(values.sumOf { it.toDouble() * it })

    /** Pearson's statistic over 26 bins of a quarter of the scale, of which the outermost hold the tails. */
    private fun chiSquare(draws: LongArray, scale: Double): Double {
        val width = maxOf(1.0, Math.floor(scale / 4))
        val most = (8 * scale).toLong()
        val bin = { y: Long -> minOf(maxOf(Math.floor(y / width).toInt(), -13), 12) }
        val weight = DoubleArray(26)
        for (y in -most..most) weight[bin(y) + 13] += Math.exp(-(y / scale) * (y / scale) / 2)
        val seen = IntArray(26)
        for (y in draws) seen[bin(y) + 13]++
        val all = weight.sum()
        return weight.indices.filter { weight[it] / all * draws.size >= 5 }.sumOf {
            val expected = weight[it] / all * draws.size
            (seen[it] - expected) * (seen[it] - expected) / expected
        }
    }

    private companion object {
        const val DRAWS = 40_000
        const val VALUES = 2_000

        /** Chi-square of 25 degrees exceeds this once in 10^4. */
        const val MOST = 61.0

        val noisy = Enrolled.plan(
            devices = 10, minLive = 9, values = VALUES,
            more = mapOf(
                "degree" to 9L, "value_bits" to 12L, "bound" to 10.0,
                "noise" to mapOf("clip_norm" to 1.0, "scale_bits" to 6L, "unit_inverse" to 200.0, "honest" to 9L),
            ),
        )

        val streams = HashMap<String, ByteArray>()

        /** A generator that gives piece after piece of the keystream of a name. */
        fun seeded(name: String): (Int) -> ByteArray {
            val stream = streams.getOrPut(name) { Masks.keystream(sha256(name.toByteArray()), 8_000_000) }
            var at = 0
            return { count -> stream.copyOfRange(at, at + count).also { at += count } }
        }
    }
}
