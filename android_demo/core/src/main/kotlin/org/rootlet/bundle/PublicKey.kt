package org.rootlet.bundle

import org.bouncycastle.crypto.params.Ed25519PublicKeyParameters
import org.bouncycastle.crypto.signers.Ed25519Signer
import org.rootlet.wire.toHex

/**
 * A publisher's raw Ed25519 public key (RFC 8032), 32 bytes. Android's own providers know Ed25519
 * from API 33 on only, hence Bouncy Castle.
 *
 * @throws IllegalArgumentException not 32 bytes, or no point of the curve.
 */
class PublicKey(raw: ByteArray) {
    private val key = run {
        kotlin.require(raw.size == BYTES) { "${raw.size} bytes; an Ed25519 public key has $BYTES" }
        Ed25519PublicKeyParameters(raw, 0)
    }

    /** The raw bytes in hexadecimal: a manifest's `publisher`. */
    val hex: String = raw.toHex()

    /** Whether [signature] is this key's over [message]. */
    fun verifies(message: ByteArray, signature: ByteArray): Boolean {
        val signer = Ed25519Signer()
        signer.init(false, key)
        signer.update(message, 0, message.size)
        return signature.size == SIGNATURE_BYTES && signer.verifySignature(signature)
    }

    companion object {
        const val BYTES = 32
        const val SIGNATURE_BYTES = 64

        /** The key of 64 hexadecimal digits. */
        fun ofHex(hex: String): PublicKey {
            kotlin.require(hex.length == 2 * BYTES) { "'$hex': an Ed25519 public key has ${2 * BYTES} hexadecimal digits" }
            return PublicKey(ByteArray(BYTES) { hex.substring(2 * it, 2 * it + 2).toInt(16).toByte() })
        }
    }
}
