package org.rootlet.fleet

import java.net.URI
import java.net.URISyntaxException

/**
 * Where a SuperLink listens.
 *
 * @property host name or address, IPv6 without brackets.
 * @property tls false on this machine only.
 */
data class Endpoint(val host: String, val port: Int, val tls: Boolean) {
    /** The URL that paths are appended to. */
    val url: String get() = "${if (tls) "https" else "http"}://${if (':' in host) "[$host]" else host}:$port"

    companion object {
        private val IPV4_LOOPBACK = Regex("""127(\.\d{1,3}){3}""")

        /**
         * Reads `host:port`, with or without `https://` or `http://`.
         *
         * Without a scheme, TLS is used unless the host is this machine and no certificate is given.
         *
         * @throws InsecureAddressError plain HTTP to another machine.
         * @throws ConfigError not an address.
         */
        fun parse(address: String, withCertificate: Boolean): Endpoint {
            val scheme = address.substringBefore("://", "")
            val rest = if ("://" in address) address.substringAfter("://") else address
            val parts = try {
                URI("rootlet://$rest").parseServerAuthority()
            } catch (_: URISyntaxException) {
                null
            }
            val plain = parts != null && parts.path in setOf("", "/") && parts.userInfo == null && parts.query == null
            val host = parts?.host?.removeSurrounding("[", "]")?.lowercase()
            if (scheme !in setOf("", "http", "https") || !plain || host == null) {
                throw ConfigError("address '$address' is not host:port, https://host:port or http://…")
            }
            val loopback = IPV4_LOOPBACK.matches(host) || host == "::1" || host == "localhost"
            val tls = scheme == "https" || (scheme.isEmpty() && (withCertificate || !loopback))
            if (!tls && !loopback) {
                throw InsecureAddressError(
                    "plain HTTP to $host would let anybody read and replay what this device sends; use " +
                        "https:// and the server's root certificate (http:// works to this machine only)",
                )
            }
            if (!tls && withCertificate) {
                throw InsecureAddressError("'$address' asks for plain HTTP although a root certificate is given; use https://")
            }
            if (parts.port !in 1..65535) {
                throw ConfigError("address '$address' names no port in 1..65535; give HOST:PORT, as the server prints it")
            }
            return Endpoint(host, parts.port, tls)
        }
    }
}
