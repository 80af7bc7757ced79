package org.rootlet.secagg

import java.math.BigDecimal
import java.math.BigInteger
import java.math.MathContext
import java.math.RoundingMode
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * Discrete Gaussian noise, exact on integers (Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential
 * Privacy", 2020): `P[Y = y] ~ exp(-y^2 / (2 s^2))` over the whole numbers, `s = 2^scaleBits`.
 *
 * Floating-point noise would leak through the gaps between floats (Mironov 2012). Here the draws are exact although
 * their arithmetic is in doubles: whether a uniform u lies below `exp(-g)` is decided in doubles only where they are
 * further apart than every rounding error ([margin]); the others, about one in 10^12, with as many digits as it takes.
 * The draws are those of `rootlet_runtime.noise` from the same bytes.
 *
 * @param scaleBits 0 to 32.
 * @param margin below which doubles do not decide; larger only in tests.
 * @param randomBytes the generator; the platform's secure one by default.
 */
internal class DiscreteGaussian(
    private val scaleBits: Int,
    private val margin: Double = MARGIN,
    private val randomBytes: (Int) -> ByteArray = Entropy::bytes,
) {
    private val scale = 1L shl scaleBits

    /** [count] independent draws. */
    fun draw(count: Int): LongArray {
        val found = LongArray(count)
        var filled = 0
        while (filled < count) {
            val missing = count - filled
            val proposals = laplace(missing + missing / 2 + 16)
            val distance = LongArray(proposals.size) { Math.abs(proposals[it]) - scale }
            val accepted = belowExp(distance, 2)
            for (i in proposals.indices) if (accepted[i] && filled < count) found[filled++] = proposals[i]
        }
        return found
    }

    /** Up to [count] draws with `P[y] ~ exp(-|y| / s)` (their algorithm 2). */
    private fun laplace(count: Int): LongArray {
        val words = words(count)
        val uniform = LongArray(count) { words[it] and (scale - 1) }
        val low = belowExp(uniform, 1).let { kept -> uniform.filterIndexed { i, _ -> kept[i] } }
        val high = LongArray(low.size)
        var going = low.indices.toList()
        while (going.isNotEmpty()) {
            val more = belowExp(LongArray(going.size) { scale }, 1)
            going = going.filterIndexed { i, _ -> more[i] }
            for (i in going) high[i]++
        }
        val signs = words(low.size)
        return low.indices.mapNotNull { i ->
            val size = low[i] + scale * high[i]
            if (signs[i] and 1L == 0L) size else if (size == 0L) null else -size // zero has two signs
        }.toLongArray()
    }

    /** True with probability `exp(-(n / s)^power / power)`, exactly; |n| < 2^53. */
    private fun belowExp(n: LongArray, power: Int): BooleanArray {
        val words = words(n.size)
        val close = ArrayList<Int>()
        val result = BooleanArray(n.size) { i ->
            val below = (words[i] ushr (64 - UNIFORM_BITS)) * UNIT - Math.exp(-Math.pow(n[i].toDouble() / scale, power.toDouble()) / power)
            if (Math.abs(below) < margin) close.add(i)
            below < 0
        }
        for (i in close) result[i] = decide(words[i] ushr (64 - UNIFORM_BITS), n[i], power)
        return result
    }

    /** Whether the uniform that begins with the 53 bits [first] is below `exp(-(n / s)^power / power)`. */
    private fun decide(first: Long, n: Long, power: Int): Boolean {
        if (n == 0L) return true
        val numerator = BigInteger.valueOf(n).pow(power)
        val denominator = BigInteger.ONE.shiftLeft(scaleBits * power) * BigInteger.valueOf(power.toLong())
        var u = BigInteger.valueOf(first)
        var bits = UNIFORM_BITS
        while (true) {
            val (value, error) = expNegative(numerator, denominator, bits / 3 + 10)
            val unit = BigDecimal(BigInteger.ONE.shiftLeft(bits))
            if (BigDecimal(u + BigInteger.ONE) <= (value - error) * unit) return true
            if (BigDecimal(u) >= (value + error) * unit) return false
            u = u.shiftLeft(MORE_BITS).or(BigInteger(1, randomBytes(MORE_BITS / 8)))
            bits += MORE_BITS
        }
    }

    private fun words(count: Int): LongArray {
        val bytes = ByteBuffer.wrap(randomBytes(8 * count)).order(ByteOrder.LITTLE_ENDIAN)
        return LongArray(count) { bytes.getLong(8 * it) }
    }

    companion object {
        const val MARGIN = 1.0 / (1L shl 40)
        private const val UNIFORM_BITS = 53
        private const val MORE_BITS = 64
        private const val UNIT = 1.0 / (1L shl UNIFORM_BITS)

        /**
         * `exp(-a / b)` and a bound of its error, by the series at `a / (b 2^k) < 1/2` and k squarings.
         *
         * Each of the k squarings doubles a relative error, so 2^k rounding errors of the series remain; a term
         * below 10^-(digits + k) bounds the tail, for terms alternate and fall.
         */
        internal fun expNegative(a: BigInteger, b: BigInteger, digits: Int): Pair<BigDecimal, BigDecimal> {
            val halvings = maxOf(0, a.bitLength() - b.bitLength() + 2)
            val context = MathContext(digits + halvings + 12, RoundingMode.HALF_EVEN)
            val x = BigDecimal(a).divide(BigDecimal(b.shiftLeft(halvings)), context)
            val smallest = BigDecimal.ONE.movePointLeft(digits + halvings + 6)
            var term = BigDecimal.ONE
            var sum = BigDecimal.ONE
            var n = 1L
            while (term.abs() > smallest) {
                term = term.multiply(x, context).negate().divide(BigDecimal.valueOf(n++), context)
                sum = sum.add(term, context)
            }
            repeat(halvings) { sum = sum.multiply(sum, context) }
            return sum to BigDecimal.ONE.movePointLeft(digits)
        }
    }
}
