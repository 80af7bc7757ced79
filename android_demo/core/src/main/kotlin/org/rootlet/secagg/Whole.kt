package org.rootlet.secagg

import org.rootlet.wire.sha256

/** Updates as whole numbers: stochastic rounding that saturates, and the rotation that makes it cost little. */
internal object Whole {
    const val KEY_BYTES = 32
    private const val UNIFORM_BITS = 16

    /** The largest size of a value of so many bits: 2^(bits - 1) - 1. */
    fun largestValue(bits: Int): Int = (1 shl (bits - 1)) - 1

    /**
     * Rounds at random, with the right mean; NaN becomes 0:
     *
     *     q = floor(v s + u),   u uniform in [0, 1),   |q| <= 2^(bits - 1) - 1
     *
     * @param values v, [d].
     * @param units s, units in 1.0.
     * @param bits of a value.
     * @param key draws u, 16 bits of a keystream each; fresh by default.
     */
    fun quantise(values: FloatArray, units: Double, bits: Int, key: ByteArray = Entropy.bytes(KEY_BYTES)): IntArray {
        val largest = largestValue(bits)
        val bound = (largest / units).toFloat()
        val words = Masks.keystream(key, 2 * values.size)
        val step = 1f / (1 shl UNIFORM_BITS)
        return IntArray(values.size) { i ->
            val value = if (values[i].isNaN()) 0f else minOf(maxOf(values[i], -bound), bound)
            val word = (words[2 * i].toInt() and 0xff) or ((words[2 * i + 1].toInt() and 0xff) shl 8)
            val rounded = Math.floor((value * units.toFloat() + word * step).toDouble()).toInt()
            minOf(maxOf(rounded, -largest), largest)
        }
    }

    /**
     * Two signed Walsh-Hadamard transforms of the largest power of two p <= d, over the first p and the last p of
     * the d values; p > d / 2, so every value is in one of them. Orthogonal; the signs are public, of the plan.
     *
     * @return the rotated vector, [d].
     */
    fun rotate(values: DoubleArray, context: ByteArray): DoubleArray {
        val size = Integer.highestOneBit(values.size)
        val count = (size + 7) / 8
        val stream = Masks.keystream(sha256(RoundKeys.DOMAIN, "rotation".toByteArray(), context), 2 * count)
        val rotated = values.copyOf()
        for ((part, start) in listOf(0, values.size - size).withIndex()) {
            for (i in 0 until size) {
                val negative = (stream[part * count + i / 8].toInt() shr (7 - i % 8)) and 1 == 1
                if (negative) rotated[start + i] = -rotated[start + i]
            }
            hadamard(rotated, start, size)
        }
        return rotated
    }

    /** The orthonormal transform of a part, in place; log2(p) passes. */
    private fun hadamard(values: DoubleArray, start: Int, size: Int) {
        var half = 1
        while (half < size) {
            for (block in start until start + size step 2 * half) {
                for (i in block until block + half) {
                    val low = values[i]
                    val high = values[i + half]
                    values[i] = low + high
                    values[i + half] = low - high
                }
            }
            half *= 2
        }
        val scale = Math.sqrt(size.toDouble())
        for (i in start until start + size) values[i] /= scale
    }
}
