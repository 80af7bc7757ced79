package org.rootlet.secagg

import java.io.File
import java.io.IOException
import org.rootlet.bundle.PublicKey
import org.rootlet.wire.replaceFile
import org.rootlet.wire.toHex

/**
 * Where a device keeps its identity: `identity` (its private key, 32 bytes), `certificate` and `authority.pub`.
 *
 * Only their owner may read them, and on Android the app's own folder is private to it; its Keystore holds no Ed25519
 * before API 33.
 *
 * @param folder made if absent.
 */
class EnrolmentFolder(private val folder: File) {
    /**
     * The identity to be enrolled by its `id`; made on the first call.
     *
     * @throws EnrolmentError the key cannot be read or written.
     */
    fun key(): RawIdentityKey = disk {
        if (!File(folder, IDENTITY).exists()) write(IDENTITY, RawIdentityKey.generate().seed)
        kept()
    }

    /** The identity that was made before. */
    private fun kept(): RawIdentityKey {
        val file = File(folder, IDENTITY)
        val seed = file.readBytes()
        if (seed.size != PublicKey.BYTES) throw EnrolmentError("$file has ${seed.size} bytes; an identity has ${PublicKey.BYTES}: enrol anew")
        return RawIdentityKey(seed)
    }

    /**
     * Keeps a certificate for this device and the authority that it and all others are of.
     *
     * @param authority its public key, 32 bytes.
     * @throws EnrolmentError it is not the authority's, not for this device, or expired.
     */
    fun install(certificate: ByteArray, authority: ByteArray): Certificate = disk {
        val key = PublicKey(authority)
        val checked = Certificate.verify(certificate, listOf(key))
        val own = key()
        if (!own.id.contentEquals(checked.device)) {
            throw EnrolmentError("the certificate is for device ${short(checked.device)}, and this one is ${short(own.id)}")
        }
        write(AUTHORITY, authority)
        write(CERTIFICATE, certificate)
        checked
    }

    /**
     * The device's identity; null where it is not enrolled.
     *
     * @throws EnrolmentError it is damaged or expired, or the identity is gone; no other is made in its place.
     */
    fun load(): Identity? = disk {
        val certificate = File(folder, CERTIFICATE)
        if (!certificate.exists()) return@disk null
        val authority = listOf(PublicKey(File(folder, AUTHORITY).readBytes()))
        Identity(kept(), Certificate.verify(certificate.readBytes(), authority), authority)
    }

    private fun write(name: String, content: ByteArray) = replaceFile(File(folder, name), content)

    private fun short(id: ByteArray) = id.toHex().take(16) + "…"

    private fun <T> disk(work: () -> T): T = try {
        work()
    } catch (error: IOException) {
        throw EnrolmentError("$folder is damaged (${error.message}): enrol again", error)
    } catch (error: IllegalArgumentException) { // not a public key
        throw EnrolmentError("$folder is damaged (${error.message}): enrol again", error)
    }

    private companion object {
        const val IDENTITY = "identity"
        const val CERTIFICATE = "certificate"
        const val AUTHORITY = "authority.pub"
    }
}
