package org.rootlet.training

/**
 * NumPy's `default_rng(entropy)`, as far as the order of examples needs it: PCG64 (XSL-RR 128/64,
 * O'Neill 2014) seeded by `SeedSequence` (O'Neill's seed_seq), and `permutation`.
 *
 * A device with this library then sees its examples in the order in which one with the Python runtime
 * would, and both end with the same adapter. For nothing that must be secret.
 *
 * @param entropy numbers, none negative, as in `default_rng([seed, epoch])`.
 */
internal class NumpyRandom(vararg entropy: Long) {
    private var high = 0L
    private var low = 0L
    private val incrementHigh: Long
    private val incrementLow: Long
    private var half: Int? = null

    init {
        kotlin.require(entropy.all { it >= 0 }) { "entropy ${entropy.toList()}: none may be negative" }
        val seed = seedSequence(entropy)
        incrementHigh = (seed[2] shl 1) or (seed[3] ushr 63)
        incrementLow = (seed[3] shl 1) or 1
        advance()
        add(seed[0], seed[1])
        advance()
    }

    /** 0 until [size] in a random order (Fisher and Yates, from the end; bounds by masks and rejection). */
    fun permutation(size: Int): IntArray {
        val order = IntArray(size) { it }
        for (last in size - 1 downTo 1) {
            val mask = -1 ushr Integer.numberOfLeadingZeros(last)
            var other: Int
            do other = next32() and mask while (other > last)
            val kept = order[last]
            order[last] = order[other]
            order[other] = kept
        }
        return order
    }

    /**
     * `integers(bound)`: uniform in 0 until [bound] (Lemire 2019), of at most 32 bits.
     *
     * @throws IllegalArgumentException [bound] is below 1 or above 2^32 - 1.
     */
    fun integer(bound: Long): Long {
        kotlin.require(bound in 1 until (1L shl 32)) { "bound $bound: must lie in 1..${(1L shl 32) - 1}" }
        if (bound == 1L) return 0
        val threshold = ((1L shl 32) - bound) % bound
        while (true) {
            val product = (next32().toLong() and 0xffffffffL) * bound
            if (product and 0xffffffffL >= threshold) return product ushr 32
        }
    }

    /** `random()`: uniform in [0, 1), 53 bits. */
    fun double(): Double = (next64() ushr 11) * (1.0 / (1L shl 53))

    private fun next32(): Int {
        half?.let {
            half = null
            return it
        }
        val next = next64()
        half = (next ushr 32).toInt()
        return next.toInt()
    }

    private fun next64(): Long {
        advance()
        return java.lang.Long.rotateRight(high xor low, (high ushr 58).toInt())
    }

    private fun advance() {
        val product = low * MULTIPLIER_LOW
        high = multiplyHighUnsigned(low, MULTIPLIER_LOW) + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH
        low = product
        add(incrementHigh, incrementLow)
    }

    private fun add(otherHigh: Long, otherLow: Long) {
        val sum = low + otherLow
        val carry = if (java.lang.Long.compareUnsigned(sum, low) < 0) 1 else 0
        low = sum
        high += otherHigh + carry
    }

    private companion object {
        const val MULTIPLIER_HIGH = 0x2360ed051fc65da4L
        const val MULTIPLIER_LOW = 0x4385df649fccf645L
        const val POOL = 4

        /** `Math.multiplyHigh` is Android's from API 31 on. */
        fun multiplyHighUnsigned(a: Long, b: Long): Long {
            val aLow = a and 0xffffffffL
            val aHigh = a ushr 32
            val bLow = b and 0xffffffffL
            val bHigh = b ushr 32
            val middle = aHigh * bLow + (aLow * bLow ushr 32)
            val other = aLow * bHigh + (middle and 0xffffffffL)
            return aHigh * bHigh + (middle ushr 32) + (other ushr 32)
        }

        fun seedSequence(entropy: LongArray): LongArray {
            val words = words(entropy)
            val pool = IntArray(POOL)
            var constant = 0x43b0d7e5
            fun hashed(word: Int): Int {
                var value = word xor constant
                constant *= 0x931e8875.toInt()
                value *= constant
                return value xor (value ushr 16)
            }
            for (i in 0 until POOL) pool[i] = hashed(if (i < words.size) words[i] else 0)
            for (source in 0 until POOL) {
                for (target in 0 until POOL) if (source != target) pool[target] = mixed(pool[target], hashed(pool[source]))
            }
            for (source in POOL until words.size) {
                for (target in 0 until POOL) pool[target] = mixed(pool[target], hashed(words[source]))
            }
            return generated(pool)
        }

        /** Each number's 32-bit words, the lowest first; one word for 0. */
        fun words(entropy: LongArray): List<Int> = entropy.flatMap {
            if (it ushr 32 == 0L) listOf(it.toInt()) else listOf(it.toInt(), (it ushr 32).toInt())
        }

        fun mixed(x: Int, y: Int): Int {
            val mixed = 0xca01f9dd.toInt() * x - 0x4973f715 * y
            return mixed xor (mixed ushr 16)
        }

        fun generated(pool: IntArray): LongArray {
            var constant = 0x8b51f9dd.toInt()
            val words = IntArray(2 * POOL) {
                var value = pool[it % POOL] xor constant
                constant *= 0x58f38ded
                value *= constant
                value xor (value ushr 16)
            }
            return LongArray(POOL) {
                (words[2 * it].toLong() and 0xffffffffL) or (words[2 * it + 1].toLong() shl 32)
            }
        }
    }
}
