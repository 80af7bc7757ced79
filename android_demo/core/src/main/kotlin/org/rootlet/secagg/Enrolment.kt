package org.rootlet.secagg

import java.text.ParsePosition
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import org.bouncycastle.crypto.params.Ed25519PrivateKeyParameters
import org.bouncycastle.crypto.signers.Ed25519Signer
import org.rootlet.bundle.PublicKey
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

/** A device's Ed25519 identity (RFC 8032) in secure rounds; a seam for keys that lie elsewhere. */
interface IdentityKey {
    /** The public key, 32 bytes: the device's id in every secure round. */
    val id: ByteArray

    /** The signature of [message], 64 bytes. */
    fun sign(message: ByteArray): ByteArray
}

/** An identity whose private part lies in memory. */
class RawIdentityKey(private val key: Ed25519PrivateKeyParameters) : IdentityKey {
    /** @param seed the private key, 32 bytes. */
    constructor(seed: ByteArray) : this(Ed25519PrivateKeyParameters(seed, 0))

    /** The private key, 32 bytes; keep it secret. */
    val seed: ByteArray get() = key.encoded

    override val id: ByteArray = key.generatePublicKey().encoded

    override fun sign(message: ByteArray): ByteArray = Ed25519Signer().run {
        init(true, key)
        update(message, 0, message.size)
        generateSignature()
    }

    companion object {
        /** A new key. */
        fun generate(): RawIdentityKey = RawIdentityKey(Ed25519PrivateKeyParameters(Entropy.source))
    }
}

/**
 * An enrolment authority's word for a device: its signature (64 bytes) and the document that it signs.
 *
 * The authority's key is held by somebody other than the operator of the server: it keeps a malicious server from
 * inventing devices or exchanging their keys.
 *
 * @property device its Ed25519 public key, 32 bytes.
 * @property name for people.
 * @property expires when it ends.
 * @property raw as it travels.
 */
class Certificate private constructor(val device: ByteArray, val name: String, val expires: Date, val raw: ByteArray) {
    companion object {
        const val ID_BYTES = 32
        const val MAX_BYTES = 4096
        private const val SCHEMA = 1L
        private val LABEL = "rootlet-enrolment-1 ".toByteArray()

        /**
         * Reads a certificate of one of the authorities.
         *
         * @throws EnrolmentError damaged, of another authority, or expired.
         */
        fun verify(raw: ByteArray, authorities: List<PublicKey>, now: Date = Date()): Certificate {
            if (raw.size !in PublicKey.SIGNATURE_BYTES + 1..MAX_BYTES) throw EnrolmentError("a certificate of ${raw.size} bytes is none")
            val signature = raw.copyOf(PublicKey.SIGNATURE_BYTES)
            val document = raw.copyOfRange(PublicKey.SIGNATURE_BYTES, raw.size)
            if (authorities.none { it.verifies(LABEL + document, signature) }) {
                throw EnrolmentError("the certificate is not of the enrolment authority that this device trusts")
            }
            val found = read(raw, document)
            if (found.expires <= now) {
                throw EnrolmentError("the certificate of ${found.name} ended on ${day(found.expires)}: enrol it anew, or set this device's clock")
            }
            return found
        }

        private fun read(raw: ByteArray, document: ByteArray): Certificate = try {
            val fields = StrictJson.parseObject(document)
            val schema = fields.long("schema")
            val device = fields.text("device")
            val name = fields.text("name")
            val expires = fields.text("expires")
            fields.finish()
            if (schema != SCHEMA || !ID.matches(device)) throw EnrolmentError("the certificate of schema $schema is not of $SCHEMA")
            Certificate(bytesOfHex(device), name, instant(expires), raw)
        } catch (error: StrictJsonError) {
            throw EnrolmentError("the certificate is damaged: ${error.message}", error)
        } catch (error: IllegalArgumentException) { // no point of the curve
            throw EnrolmentError("the certificate is damaged: ${error.message}", error)
        }

        private fun utc(pattern: String) = SimpleDateFormat(pattern, Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }

        private fun day(time: Date) = utc("yyyy-MM-dd").format(time)

        private fun instant(text: String): Date {
            val format = utc("yyyy-MM-dd'T'HH:mm:ss'Z'")
            format.isLenient = false
            val at = ParsePosition(0)
            val found = format.parse(text, at)
            if (found == null || at.index != text.length) throw EnrolmentError("the certificate is damaged: '$text' is no time in UTC")
            return found
        }

        private val ID = Regex("[0-9a-fA-F]{64}")
    }
}

/**
 * A device that may take part in secure rounds.
 *
 * @property key its private key.
 * @property certificate the authority's word for it.
 * @property authorities whose word it takes for others.
 * @throws EnrolmentError the certificate is another device's.
 */
class Identity(val key: IdentityKey, val certificate: Certificate, val authorities: List<PublicKey>) {
    init {
        if (!key.id.contentEquals(certificate.device)) throw EnrolmentError("the certificate is another device's: enrol again")
    }
}

internal fun bytesOfHex(hex: String): ByteArray = ByteArray(hex.length / 2) { hex.substring(2 * it, 2 * it + 2).toInt(16).toByte() }

/** Whether an Ed25519 signature is valid. */
internal fun verified(key: ByteArray, signature: ByteArray, message: ByteArray): Boolean = try {
    PublicKey(key).verifies(message, signature)
} catch (_: IllegalArgumentException) { // no point of the curve
    false
}
