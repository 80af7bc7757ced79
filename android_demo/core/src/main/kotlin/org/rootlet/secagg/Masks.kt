package org.rootlet.secagg

import javax.crypto.Cipher
import javax.crypto.spec.IvParameterSpec
import javax.crypto.spec.SecretKeySpec
import org.bouncycastle.crypto.StreamCipher
import org.bouncycastle.crypto.engines.ChaCha7539Engine
import org.bouncycastle.crypto.params.KeyParameter
import org.bouncycastle.crypto.params.ParametersWithIV

/**
 * Masks: keystreams that are added to whole numbers modulo 2^16 or 2^32.
 *
 * A mask is the keystream of AES-256-CTR (NIST SP 800-38A), or of ChaCha20 (RFC 8439), under a key that is used for
 * nothing else, from counter 0, read as little-endian words.
 */
internal object Masks {
    const val AES = "aes-256-ctr"
    const val CHACHA = "chacha20"
    val STREAMS = listOf(AES, CHACHA)
    private const val CHUNK_BYTES = 128 * 1024

    /**
     * Adds ([Mask.sign] 1) or subtracts (-1) masks in place, modulo 2^[wordBits].
     *
     * @param values the words [d]; of 16 bits in the lower half of each.
     * @param wordBits 16 or 32.
     */
    fun add(values: IntArray, wordBits: Int, masks: List<Mask>, stream: String = AES) {
        val bytes = wordBits / 8
        val step = CHUNK_BYTES / bytes
        val zeros = ByteArray(CHUNK_BYTES)
        val piece = ByteArray(CHUNK_BYTES)
        val streams = masks.map { keyed(it.key, stream) to it.sign }
        for (start in values.indices step step) {
            val count = minOf(step, values.size - start)
            for ((next, sign) in streams) {
                next(zeros, count * bytes, piece)
                var at = 0
                for (i in start until start + count) {
                    var word = 0
                    for (k in 0 until bytes) word = word or ((piece[at++].toInt() and 0xff) shl 8 * k)
                    values[i] += sign * word
                }
            }
        }
        if (wordBits == 16) for (i in values.indices) values[i] = values[i] and 0xffff
    }

    /** The first [size] bytes of a key's stream. */
    fun keystream(key: ByteArray, size: Int, stream: String = AES): ByteArray =
        ByteArray(size).also { keyed(key, stream)(ByteArray(size), size, it) }

    /** A function that encrypts so many of its bytes into another array, going on where it stopped. */
    private fun keyed(key: ByteArray, stream: String): (ByteArray, Int, ByteArray) -> Unit {
        if (stream == CHACHA) {
            val engine: StreamCipher = ChaCha7539Engine()
            engine.init(true, ParametersWithIV(KeyParameter(key), ByteArray(12)))
            return { input, count, output -> engine.processBytes(input, 0, count, output, 0) }
        }
        val cipher = Cipher.getInstance("AES/CTR/NoPadding")
        cipher.init(Cipher.ENCRYPT_MODE, SecretKeySpec(key, "AES"), IvParameterSpec(ByteArray(16)))
        return { input, count, output -> cipher.update(input, 0, count, output, 0) }
    }
}

/** A mask's key, 32 bytes, and whether it is added (1) or subtracted (-1). */
internal class Mask(val key: ByteArray, val sign: Int)
