package org.rootlet.secagg

import java.math.BigInteger

/**
 * Shamir's secret sharing (1979) over the prime field of `p = 2^256 + 297`.
 *
 * A secret s of 32 bytes is the constant term of a random polynomial of degree t - 1; a share is its value at a
 * point x >= 1. Any t shares give s back, fewer tell nothing:
 *
 *     f(x) = s + c_1 x + ... + c_{t-1} x^{t-1}  mod p
 */
internal object Shamir {
    const val SECRET_BYTES = 32
    const val SHARE_BYTES = 33
    val PRIME: BigInteger = BigInteger.ONE.shiftLeft(256) + BigInteger.valueOf(297)

    /** Uniform below [PRIME]: numbers of 257 bits, drawn again until one is. */
    private fun coefficient(): BigInteger {
        while (true) BigInteger(PRIME.bitLength(), Entropy.source).let { if (it < PRIME) return it }
    }

    /**
     * The shares of a secret, 33 bytes each, big-endian.
     *
     * @param secret 32 bytes.
     * @param points distinct, from 1.
     * @param threshold t, how many shares give the secret back.
     * @param coefficient draws a number below p; replaced in tests with known answers only.
     * @throws IllegalArgumentException sizes that do not fit together.
     */
    fun split(
        secret: ByteArray,
        points: List<Int>,
        threshold: Int,
        coefficient: () -> BigInteger = ::coefficient,
    ): List<ByteArray> {
        require(secret.size == SECRET_BYTES) { "a secret of ${secret.size} bytes; it must have $SECRET_BYTES" }
        require(threshold in 1..points.size) { "threshold $threshold of ${points.size} shares; at least 1, at most all" }
        require(points.toSet().size == points.size && points.all { it >= 1 }) { "points must be distinct and at least 1" }
        val polynomial = List(threshold - 1) { coefficient() }.reversed() + BigInteger(1, secret)
        return points.map { point ->
            val x = BigInteger.valueOf(point.toLong())
            padded(polynomial.fold(BigInteger.valueOf(0)) { value, c -> (value * x + c).mod(PRIME) })
        }
    }

    private fun padded(value: BigInteger): ByteArray {
        val bytes = value.toByteArray() // at most 33, for p has 257 bits and the sign needs none of its own byte
        return ByteArray(SHARE_BYTES - bytes.size) + bytes
    }
}
