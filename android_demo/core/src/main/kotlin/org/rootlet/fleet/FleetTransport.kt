package org.rootlet.fleet

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.InetAddress
import java.net.URL
import java.security.KeyStore
import java.security.SecureRandom
import java.security.cert.CertificateException
import java.security.cert.CertificateFactory
import java.text.SimpleDateFormat
import java.util.Base64
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import java.util.concurrent.atomic.AtomicLong
import javax.net.ssl.HttpsURLConnection
import javax.net.ssl.SSLContext
import javax.net.ssl.SSLException
import javax.net.ssl.SSLSocketFactory
import javax.net.ssl.TrustManagerFactory
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

/**
 * How often and how long to try: the wait before attempt n is uniform in [0, min(cap, base 2^(n-1))], so that
 * a thousand devices do not come back at once. Times in milliseconds.
 */
class RetryPolicy(val attempts: Int = 5, val baseMs: Long = 500, val capMs: Long = 8000, val timeoutMs: Int = 30_000) {
    init {
        require(attempts >= 1 && baseMs >= 0 && capMs >= 0 && timeoutMs > 0) {
            "attempts $attempts >= 1, waits >= 0 and timeoutMs $timeoutMs > 0 are needed"
        }
    }
}

/**
 * Calls of Flower's Fleet API over HTTP: one POST, signed with the node key.
 *
 * The signature covers the time alone, so TLS is a must: plain HTTP goes to this machine only. A server whose
 * clock differs corrects this device's, for the signatures.
 *
 * @param address `host:port`, `https://host:port`, or `http://` to this machine.
 * @param rootCertificate PEM of the authority that signed the server's certificate; null for the system's.
 * @throws IllegalArgumentException no address, plain HTTP to another machine, or no certificate.
 */
class FleetTransport(
    address: String,
    private val nodeKey: NodeKey,
    rootCertificate: ByteArray? = null,
    private val retry: RetryPolicy = RetryPolicy(),
    private val maxResponseBytes: Int = 8 shl 20,
) {
    private val base: URL = endpoint(address, rootCertificate != null)
    private val sockets: SSLSocketFactory? = if (base.protocol == "https") trusting(rootCertificate) else null
    private val random = SecureRandom()
    private val skewMs = AtomicLong()

    /** Bytes of bodies sent and received so far. */
    val bytesUp = AtomicLong()
    val bytesDown = AtomicLong()

    /** The server's time as far as known, in milliseconds since the epoch. */
    fun nowMs(): Long = System.currentTimeMillis() + skewMs.get()

    /**
     * Sends [body] to [call], such as `pull-messages`, and returns the answer's body.
     *
     * @throws ConnectionFailedError no answer after all attempts.
     * @throws AuthenticationError 401, also after correcting for a wrong clock.
     * @throws FleetException any other refusal.
     */
    fun post(call: String, body: ByteArray): ByteArray {
        var attempt = 1
        while (true) {
            try {
                return authenticated(call, body)
            } catch (error: ConnectionFailedError) {
                if (attempt == retry.attempts) throw error
            }
            Thread.sleep((random.nextDouble() * minOf(retry.capMs, retry.baseMs shl (attempt - 1).coerceAtMost(20))).toLong())
            attempt++
        }
    }

    private fun authenticated(call: String, body: ByteArray): ByteArray {
        var answer = exchange(call, body)
        val skew = if (answer.dateMs > 0) answer.dateMs - nowMs() else 0
        if (answer.status == HttpURLConnection.HTTP_UNAUTHORIZED && Math.abs(skew) > CLOCK_TOLERANCE_MS) {
            skewMs.addAndGet(skew)
            answer = exchange(call, body)
        }
        val status = answer.status
        return when {
            status == HttpURLConnection.HTTP_OK -> answer.body
            status == 429 || status >= 500 -> throw ServerBusyError("${base.host} answers $status to $call; try later")
            status == HttpURLConnection.HTTP_UNAUTHORIZED -> throw AuthenticationError(
                "${base.host} refuses this node's signature on $call: the node key is not registered there, or the " +
                    "clock is wrong (by ${skew / 1000} s)",
            )
            else -> throw refusal(call, status, answer.body)
        }
    }

    private class Response(val status: Int, val dateMs: Long, val body: ByteArray)

    private fun exchange(call: String, body: ByteArray): Response {
        val connection = URL(base, "/v1/fleet/$call").openConnection() as HttpURLConnection
        try {
            if (connection is HttpsURLConnection) connection.sslSocketFactory = sockets
            connection.requestMethod = "POST"
            connection.doOutput = true
            connection.instanceFollowRedirects = false
            connection.useCaches = false
            connection.connectTimeout = retry.timeoutMs
            connection.readTimeout = retry.timeoutMs
            connection.setFixedLengthStreamingMode(body.size) // a platform that repeats a POST by itself loses messages
            headers().forEach { (name, value) -> connection.setRequestProperty(name, value) }
            connection.outputStream.use { it.write(body) }
            bytesUp.addAndGet(body.size.toLong())
            val status = connection.responseCode
            val ok = status == HttpURLConnection.HTTP_OK
            val stream = if (ok) connection.inputStream else connection.errorStream
            val content = stream?.use { read(it, if (ok) maxResponseBytes else MAX_ERROR_BYTES, call) } ?: ByteArray(0)
            bytesDown.addAndGet(content.size.toLong())
            return Response(status, connection.getHeaderFieldDate("Date", 0), content)
        } catch (error: SSLException) {
            if (generateSequence<Throwable>(error) { it.cause }.none { it is CertificateException }) throw lost(call, error)
            throw FleetException(
                "${base.host} shows a certificate that the root certificate does not vouch for (${error.message}); " +
                    "check the root certificate and the host name",
                cause = error,
            )
        } catch (error: IOException) {
            throw lost(call, error)
        }
    }

    private fun lost(call: String, error: IOException) = ConnectionFailedError(
        "${base.host}:${base.port} does not answer $call: ${error.javaClass.simpleName}: ${error.message}", error,
    )

    private fun headers(): Map<String, String> {
        val time = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss.SSS'000+00:00'", Locale.ROOT).run {
            timeZone = TimeZone.getTimeZone("UTC")
            format(Date(nowMs()))
        }
        val base64 = Base64.getEncoder()
        return mapOf(
            "Content-Type" to MEDIA_TYPE,
            "Accept" to MEDIA_TYPE,
            "flwr-public-key" to base64.encodeToString(nodeKey.publicPem),
            "flwr-timestamp" to time,
            "flwr-signature" to base64.encodeToString(nodeKey.sign(time.toByteArray(Charsets.US_ASCII))),
        )
    }

    private fun read(stream: InputStream, limit: Int, call: String): ByteArray {
        val out = ByteArrayOutputStream()
        val buffer = ByteArray(16 * 1024)
        while (true) {
            val count = stream.read(buffer)
            if (count < 0) return out.toByteArray()
            out.write(buffer, 0, count)
            if (out.size() > limit) throw ProtocolError("the answer to $call is larger than $limit bytes")
        }
    }

    internal companion object {
        const val REGISTRATION_DISABLED = 2001
        const val PUBLIC_KEY_IN_USE = 23
        const val ACTIVATION_FAILED = 2004
        const val DEACTIVATION_FAILED = 2005
        const val RUN_STATUS_NOT_ALLOWED = 2007
        private const val MEDIA_TYPE = "application/protobuf"
        private const val MAX_ERROR_BYTES = 64 * 1024

        /** Flower accepts a timestamp up to 5 s in its future; beyond this difference a 401 may be due to the clock. */
        private const val CLOCK_TOLERANCE_MS = 4000L

        fun endpoint(address: String, certified: Boolean): URL {
            val scheme = address.substringBefore("://", "")
            val rest = address.substringAfter("://").removeSuffix("/")
            val host = rest.substringBeforeLast(":", "").removeSurrounding("[", "]")
            val port = rest.substringAfterLast(":").toIntOrNull()
            require(scheme in setOf("", "http", "https") && host.isNotEmpty() && port in 1..65535 && "/" !in rest && "@" !in rest) {
                "address '$address' is not host:port, https://host:port or http://…"
            }
            val loopback = host == "localhost" || NUMERIC.matches(host) && InetAddress.getByName(host).isLoopbackAddress
            val tls = scheme == "https" || scheme.isEmpty() && (certified || !loopback)
            require(tls || loopback) {
                "plain HTTP to $host would let anybody read and replay what this device sends; use https://"
            }
            require(tls || !certified) { "'$address' asks for plain HTTP although a root certificate is given" }
            return URL(if (tls) "https" else "http", host, port!!, "/")
        }

        private val NUMERIC = Regex("[0-9.]+|[0-9a-fA-F:]+")

        private fun trusting(rootCertificate: ByteArray?): SSLSocketFactory {
            val store = rootCertificate?.let {
                try {
                    val certificates = CertificateFactory.getInstance("X.509").generateCertificates(ByteArrayInputStream(it))
                    require(certificates.isNotEmpty()) { "the root certificate holds none" }
                    KeyStore.getInstance(KeyStore.getDefaultType()).apply {
                        load(null, null)
                        certificates.forEachIndexed { i, certificate -> setCertificateEntry("root-$i", certificate) }
                    }
                } catch (error: CertificateException) {
                    throw IllegalArgumentException("the root certificate is not PEM: ${error.message}", error)
                }
            }
            val managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm()).apply { init(store) }
            return SSLContext.getInstance("TLS").apply { init(null, managers.trustManagers, null) }.socketFactory
        }

        private fun refusal(call: String, status: Int, body: ByteArray): FleetException {
            val fields = try {
                StrictJson.parse(body) as? Map<*, *>
            } catch (_: StrictJsonError) {
                null
            }
            val code = (fields?.get("code") as? Long)?.toInt() ?: 0
            val text = listOf("detail", "extra").mapNotNull { fields?.get(it) }.joinToString(" ").take(300)
            return when (code) {
                ACTIVATION_FAILED -> NodeStillActiveError(
                    "the server does not activate this node key: either its operator has not registered it, or the " +
                        "server still counts it as online (until twice the heartbeat interval after the last one)",
                )
                RUN_STATUS_NOT_ALLOWED -> RunEndedError("the run is not running: $call answers $text")
                else -> ServerRefusedError("$call is refused with status $status, code $code: $text", status, code)
            }
        }
    }
}
