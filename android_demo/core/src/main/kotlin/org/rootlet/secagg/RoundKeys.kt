package org.rootlet.secagg

import java.nio.ByteBuffer
import java.security.GeneralSecurityException
import javax.crypto.Cipher
import javax.crypto.Mac
import javax.crypto.spec.GCMParameterSpec
import javax.crypto.spec.SecretKeySpec
import org.bouncycastle.crypto.agreement.X25519Agreement
import org.bouncycastle.crypto.params.X25519PrivateKeyParameters
import org.bouncycastle.crypto.params.X25519PublicKeyParameters
import org.rootlet.wire.sha256

/**
 * Keys of a secure round: X25519 agreements (RFC 7748), and HKDF-SHA256 labels that tell every use apart.
 *
 *     key = HKDF-SHA256(secret, info = "rootlet-secagg-1 " | label | context | low | high)
 *
 * with `context` the SHA-256 of the roster and the two devices' places as 32-bit big-endian numbers, the smaller
 * first. Channel keys encrypt shares by AES-256-GCM under a random nonce, with the direction as associated data.
 * Android's own providers know X25519 from API 31 on only, hence Bouncy Castle.
 */
internal object RoundKeys {
    val DOMAIN = "rootlet-secagg-1 ".toByteArray()
    private const val NONCE_BYTES = 12
    private const val TAG_BITS = 128
    private const val KEY_BYTES = 32

    fun privateKey(): X25519PrivateKeyParameters = X25519PrivateKeyParameters(Entropy.source)

    /** A device's place in the roster, 32 bits big-endian. */
    fun place(index: Int): ByteArray = ByteBuffer.allocate(4).putInt(index).array()

    /**
     * A key of 32 bytes from a secret of 32 uniform bytes, for one use: HKDF-Expand (RFC 5869, 2.3) after SHA-256
     * as the extraction.
     */
    fun derive(secret: ByteArray, label: String, context: ByteArray, vararg places: Int): ByteArray =
        Mac.getInstance("HmacSHA256").run {
            init(SecretKeySpec(sha256(secret), "HmacSHA256"))
            update(DOMAIN + label.toByteArray() + context)
            for (each in places.sorted()) update(place(each))
            doFinal(byteArrayOf(1)) // the first block is all of the 32 bytes
        }

    /**
     * The X25519 agreement, 32 bytes.
     *
     * @throws SecureRoundRefusedError not a public key, or one of low order.
     */
    fun agree(own: X25519PrivateKeyParameters, public: ByteArray): ByteArray {
        if (public.size != KEY_BYTES) refuse("a public key of ${public.size} bytes agrees with nobody")
        val agreed = ByteArray(KEY_BYTES)
        try {
            X25519Agreement().apply { init(own) }.calculateAgreement(X25519PublicKeyParameters(public, 0), agreed, 0)
        } catch (error: IllegalStateException) {
            refuse("a public key that agrees with nobody: ${error.message}")
        }
        return agreed
    }

    /** Encrypts shares from one device to another: nonce, ciphertext and tag. */
    fun seal(key: ByteArray, plain: ByteArray, context: ByteArray, source: Int, target: Int): ByteArray {
        val nonce = Entropy.bytes(NONCE_BYTES)
        return nonce + cipher(Cipher.ENCRYPT_MODE, key, nonce, context, source, target).doFinal(plain)
    }

    /**
     * Decrypts what [seal] made.
     *
     * @throws SecureRoundRefusedError it was changed, or is from or for another device or round.
     */
    fun unseal(key: ByteArray, sealed: ByteArray, context: ByteArray, source: Int, target: Int): ByteArray {
        val changed = "the shares from device $source were changed on their way"
        if (sealed.size < NONCE_BYTES) refuse(changed)
        return try {
            cipher(Cipher.DECRYPT_MODE, key, sealed.copyOf(NONCE_BYTES), context, source, target)
                .doFinal(sealed, NONCE_BYTES, sealed.size - NONCE_BYTES)
        } catch (_: GeneralSecurityException) {
            refuse(changed)
        }
    }

    private fun cipher(mode: Int, key: ByteArray, nonce: ByteArray, context: ByteArray, source: Int, target: Int): Cipher =
        Cipher.getInstance("AES/GCM/NoPadding").apply {
            init(mode, SecretKeySpec(key, "AES"), GCMParameterSpec(TAG_BITS, nonce))
            updateAAD(context + place(source) + place(target))
        }
}
