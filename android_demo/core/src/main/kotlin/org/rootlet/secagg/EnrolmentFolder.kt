package org.rootlet.secagg

import java.io.File
import java.io.IOException
import org.rootlet.bundle.PublicKey
import org.rootlet.wire.replaceFile

/**
 * Where a device keeps its identity: `identity` (its private key, 32 bytes), `certificate` and `authority.pub`.
 *
 * On Android the app's own folder is private to it; Android's Keystore holds no Ed25519 before API 33.
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
        val file = File(folder, IDENTITY)
        if (!file.exists()) write(IDENTITY, RawIdentityKey.generate().seed)
        val seed = file.readBytes()
        if (seed.size != PublicKey.BYTES) throw EnrolmentError("$file has ${seed.size} bytes; an identity has ${PublicKey.BYTES}: enrol anew")
        RawIdentityKey(seed)
    }

    /**
     * Keeps a certificate for this device and the authority that it and all others are of.
     *
     * @param authority its public key, 32 bytes.
     * @throws EnrolmentError it is not the authority's, not for this device, or expired.
     */
    fun install(certificate: ByteArray, authority: ByteArray): Certificate = disk {
        val key = PublicKey(authority)
        val identity = Identity(key(), Certificate.verify(certificate, listOf(key)), listOf(key))
        write(AUTHORITY, authority)
        write(CERTIFICATE, certificate)
        identity.certificate
    }

    /**
     * The device's identity; null where it is not enrolled.
     *
     * @throws EnrolmentError it is damaged or expired.
     */
    fun load(): Identity? = disk {
        val certificate = File(folder, CERTIFICATE)
        if (!certificate.exists()) return@disk null
        val authority = listOf(PublicKey(File(folder, AUTHORITY).readBytes()))
        Identity(key(), Certificate.verify(certificate.readBytes(), authority), authority)
    }

    private fun write(name: String, content: ByteArray) = replaceFile(File(folder, name), content)

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
