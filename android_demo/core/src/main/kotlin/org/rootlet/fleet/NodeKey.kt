package org.rootlet.fleet

import java.io.File
import java.io.IOException
import java.math.BigInteger
import java.nio.file.Files
import java.nio.file.attribute.PosixFileAttributeView
import java.nio.file.attribute.PosixFilePermission
import java.security.AlgorithmParameters
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.KeyPairGenerator
import java.security.PrivateKey
import java.security.PublicKey
import java.security.Signature
import java.security.interfaces.ECKey
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECGenParameterSpec
import java.security.spec.ECParameterSpec
import java.security.spec.ECPoint
import java.security.spec.ECPublicKeySpec
import java.security.spec.PKCS8EncodedKeySpec
import java.util.Base64
import org.bouncycastle.crypto.ec.CustomNamedCurves

/** The ECDSA key that identifies a device to the SuperLink. */
interface NodeKey {
    /** The public key in PEM (SubjectPublicKeyInfo), as the Fleet API wants it. */
    val publicPem: ByteArray

    /** The ECDSA-SHA256 signature of [content], DER-encoded. */
    fun sign(content: ByteArray): ByteArray
}

/** A public key in PEM (SubjectPublicKeyInfo, lines of 64 characters). */
fun publicPem(key: PublicKey): ByteArray = pem("PUBLIC KEY", key.encoded)

/** A P-256 node key whose private part lies in memory, and in a PKCS #8 PEM file. */
class PemNodeKey private constructor(private val privateKey: PrivateKey, publicKey: PublicKey) : NodeKey {
    override val publicPem: ByteArray = publicPem(publicKey)

    /** The private key as PKCS #8 PEM; keep it secret. */
    val privatePem: ByteArray get() = pem("PRIVATE KEY", privateKey.encoded)

    override fun sign(content: ByteArray): ByteArray = Signature.getInstance("SHA256withECDSA").run {
        initSign(privateKey)
        update(content)
        sign()
    }

    /**
     * Writes the private key to a new file that only its owner may read.
     *
     * @throws NodeKeyError there is a file already (keys are never overwritten), or the disk refuses.
     */
    fun save(file: File) {
        try {
            Files.createFile(file.toPath())
            if (Files.getFileAttributeView(file.toPath(), PosixFileAttributeView::class.java) != null) {
                Files.setPosixFilePermissions(file.toPath(), OWNER_ONLY) // before the secret is in it
            }
            file.writeBytes(privatePem)
        } catch (error: IOException) {
            throw NodeKeyError("node key $file cannot be written: $error; keys are never overwritten", error)
        }
    }

    companion object {
        private val OWNER_ONLY = setOf(PosixFilePermission.OWNER_READ, PosixFilePermission.OWNER_WRITE)
        private const val BEGIN = "-----BEGIN PRIVATE KEY-----"
        private const val END = "-----END PRIVATE KEY-----"

        /** A new key. */
        fun generate(): PemNodeKey {
            val pair = KeyPairGenerator.getInstance("EC").run {
                initialize(ECGenParameterSpec("secp256r1"))
                generateKeyPair()
            }
            return PemNodeKey(pair.private, pair.public)
        }

        /**
         * The key in a file.
         *
         * @throws NodeKeyError missing, readable by others, or no P-256 key in PKCS #8 PEM.
         */
        fun load(file: File): PemNodeKey {
            val content = try {
                val view = Files.getFileAttributeView(file.toPath(), PosixFileAttributeView::class.java)
                val others = view?.readAttributes()?.permissions().orEmpty() - OWNER_ONLY - PosixFilePermission.OWNER_EXECUTE
                if (others.isNotEmpty()) {
                    throw NodeKeyError("node key $file may be used by others ($others); run chmod 600 $file")
                }
                file.readBytes()
            } catch (error: IOException) {
                throw NodeKeyError("node key $file cannot be read: $error", error)
            }
            return parse(content, "node key $file")
        }

        /**
         * The key in a PKCS #8 PEM text.
         *
         * @param what names the key in errors.
         * @throws NodeKeyError no P-256 key in PKCS #8 PEM without a passphrase.
         */
        fun parse(content: ByteArray, what: String = "the node key"): PemNodeKey {
            val text = String(content, Charsets.US_ASCII).trim()
            if (!text.startsWith(BEGIN) || !text.endsWith(END) || text.length < BEGIN.length + END.length) {
                throw NodeKeyError("$what is not a private key in PKCS #8 PEM without a passphrase")
            }
            try {
                val body = Base64.getMimeDecoder().decode(text.removePrefix(BEGIN).removeSuffix(END))
                val factory = KeyFactory.getInstance("EC")
                val key = factory.generatePrivate(PKCS8EncodedKeySpec(body)) as ECPrivateKey
                val curve = p256()
                if (!isP256(key)) {
                    throw NodeKeyError("$what is not on P-256; make one with PemNodeKey.generate()")
                }
                return PemNodeKey(key, factory.generatePublic(ECPublicKeySpec(publicPoint(key.s), curve)))
            } catch (error: GeneralSecurityException) {
                throw NodeKeyError("$what is not an elliptic-curve key in PKCS #8: ${error.message}", error)
            } catch (error: IllegalArgumentException) {
                throw NodeKeyError("$what is not base64: ${error.message}", error)
            }
        }

        /** d G: PKCS #8 need not hold the public key, and Java does not compute it. */
        private fun publicPoint(d: BigInteger): ECPoint {
            val point = CustomNamedCurves.getByName("secp256r1").g.multiply(d).normalize()
            return ECPoint(point.affineXCoord.toBigInteger(), point.affineYCoord.toBigInteger())
        }
    }
}

/** The parameters of P-256. */
private fun p256(): ECParameterSpec = AlgorithmParameters.getInstance("EC").run {
    init(ECGenParameterSpec("secp256r1"))
    getParameterSpec(ECParameterSpec::class.java)
}

/** Whether a key, private or public, is on P-256. */
internal fun isP256(key: ECKey): Boolean = p256().let { key.params.curve == it.curve && key.params.generator == it.generator }

private fun pem(label: String, der: ByteArray): ByteArray {
    val body = Base64.getMimeEncoder(64, byteArrayOf('\n'.code.toByte())).encodeToString(der)
    return "-----BEGIN $label-----\n$body\n-----END $label-----\n".toByteArray(Charsets.US_ASCII)
}
