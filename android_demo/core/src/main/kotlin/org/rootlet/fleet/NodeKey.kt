package org.rootlet.fleet

import java.security.KeyFactory
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.PrivateKey
import java.security.PublicKey
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.X509EncodedKeySpec
import java.util.Base64

/** The P-256 key that identifies a device to the server. On Android it lies in the Keystore. */
interface NodeKey {
    /** The public key in PEM (SubjectPublicKeyInfo), as the Fleet API wants it. */
    val publicPem: ByteArray

    /** The ECDSA-SHA256 signature over [content], DER-encoded. */
    fun sign(content: ByteArray): ByteArray
}

/** A node key whose private half is a key object of the platform, one of its key store's too. */
class PlatformNodeKey(private val privateKey: PrivateKey, publicKey: PublicKey) : NodeKey {
    override val publicPem: ByteArray = pem("PUBLIC KEY", publicKey.encoded)

    override fun sign(content: ByteArray): ByteArray {
        val signature = Signature.getInstance("SHA256withECDSA")
        signature.initSign(privateKey)
        signature.update(content)
        return signature.sign()
    }

    companion object {
        /** A new key pair in this process's memory. */
        fun generate(): KeyPair = KeyPairGenerator.getInstance("EC").run {
            initialize(ECGenParameterSpec("secp256r1"))
            generateKeyPair()
        }

        fun of(pair: KeyPair) = PlatformNodeKey(pair.private, pair.public)

        /** The pair as bytes (PKCS 8, SubjectPublicKeyInfo), to be kept encrypted. */
        fun encoded(pair: KeyPair): Pair<ByteArray, ByteArray> = pair.private.encoded to pair.public.encoded

        /** What [encoded] gave. */
        fun decoded(privateKey: ByteArray, publicKey: ByteArray): PlatformNodeKey = KeyFactory.getInstance("EC").run {
            PlatformNodeKey(generatePrivate(PKCS8EncodedKeySpec(privateKey)), generatePublic(X509EncodedKeySpec(publicKey)))
        }

        private fun pem(label: String, content: ByteArray): ByteArray {
            val lines = Base64.getMimeEncoder(64, byteArrayOf('\n'.code.toByte())).encodeToString(content)
            return "-----BEGIN $label-----\n$lines\n-----END $label-----\n".toByteArray(Charsets.US_ASCII)
        }
    }
}
