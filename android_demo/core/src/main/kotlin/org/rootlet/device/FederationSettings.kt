package org.rootlet.device

import java.io.ByteArrayInputStream
import java.io.File
import java.security.cert.CertificateException
import java.security.cert.CertificateFactory
import org.rootlet.fleet.ConfigError
import org.rootlet.fleet.Endpoint
import org.rootlet.fleet.InsecureAddressError
import org.rootlet.wire.StrictJsonError

/**
 * The server that this device takes part at.
 *
 * @property address `https://host:port`; a phone speaks plain HTTP to nobody, not even to itself.
 * @property authorityPem of the authority that signed the server's certificate; null for the system's authorities.
 */
class FederationSettings private constructor(val address: String, val authorityPem: String?) {
    /** Keeps them in [folder]. @throws java.io.IOException the disk refuses. */
    fun save(folder: File) = PrivateFile(File(folder, FILE)).writeObject(
        linkedMapOf("address" to address, "authority" to authorityPem.orEmpty().lines()),
    )

    companion object {
        private const val FILE = "federation.json"

        /**
         * What a user typed.
         *
         * @param address `host:port` or `https://host:port`.
         * @param authority PEM; empty for the system's authorities.
         * @throws InsecureAddressError plain HTTP.
         * @throws ConfigError not an address, or no certificate.
         */
        fun of(address: String, authority: String): FederationSettings {
            val typed = address.trim()
            if (typed.startsWith("http://")) {
                throw InsecureAddressError("'$typed' asks for plain HTTP, which this app speaks to nobody; give https://HOST:PORT")
            }
            val url = if (typed.startsWith("https://")) typed else "https://$typed"
            val endpoint = Endpoint.parse(url, withCertificate = true)
            val pem = authority.trim().takeIf { it.isNotEmpty() }?.also(::check)
            return FederationSettings(endpoint.url, pem)
        }

        /** What [save] kept; null without any, or where it is damaged: the user joins anew. */
        fun load(folder: File): FederationSettings? = try {
            PrivateFile(File(folder, FILE)).readObject()?.let { of(it.text("address"), it.texts("authority").joinToString("\n")) }
        } catch (_: StrictJsonError) {
            null
        } catch (_: ConfigError) {
            null
        } catch (_: InsecureAddressError) {
            null
        }

        /** Leaves the federation. */
        fun forget(folder: File) = PrivateFile(File(folder, FILE)).delete()

        private fun check(pem: String) {
            val found = try {
                CertificateFactory.getInstance("X.509").generateCertificates(ByteArrayInputStream(pem.toByteArray())).size
            } catch (error: CertificateException) {
                throw ConfigError("the authority is no certificate (${error.message}); paste the PEM text that the server's operator gave", error)
            }
            if (found == 0) throw ConfigError("the authority holds no certificate; paste the PEM text that the server's operator gave")
        }
    }
}
