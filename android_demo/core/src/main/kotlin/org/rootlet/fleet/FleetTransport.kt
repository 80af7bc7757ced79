package org.rootlet.fleet

import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URL
import java.security.GeneralSecurityException
import java.security.KeyStore
import java.security.SecureRandom
import java.security.cert.CertificateException
import java.security.cert.CertificateFactory
import java.time.Instant
import java.time.ZoneOffset
import java.time.format.DateTimeFormatter
import java.util.Base64
import java.util.Locale
import java.util.concurrent.atomic.AtomicLong
import javax.net.ssl.HttpsURLConnection
import javax.net.ssl.SSLContext
import javax.net.ssl.SSLPeerUnverifiedException
import javax.net.ssl.SSLSocketFactory
import javax.net.ssl.TrustManagerFactory
import kotlin.math.abs
import kotlin.math.min

/** One request, one answer: the seam under the Fleet API. */
fun interface Transport {
    /**
     * Sends [body] to [path] (such as `/v1/fleet/pull-messages`) and returns the answer's body.
     *
     * @throws FleetError no answer, or a refusal.
     */
    fun post(path: String, body: ByteArray): ByteArray
}

/**
 * How often and how long to try.
 *
 * The wait before attempt n is uniform in `[0, min(capS, baseS 2^(n-1))]` (full jitter, so that a
 * thousand devices do not come back at once).
 *
 * @property attempts tries in all.
 * @property baseS upper end of the first wait, in seconds.
 * @property capS upper end of any wait, in seconds.
 * @property timeoutS bound on each socket operation, in seconds.
 */
data class RetryPolicy(val attempts: Int = 5, val baseS: Double = 0.5, val capS: Double = 8.0, val timeoutS: Double = 30.0) {
    init {
        if (attempts < 1 || !(baseS >= 0) || !(capS >= 0) || !(timeoutS > 0)) {
            throw ConfigError("$this: attempts >= 1, waits >= 0 and timeoutS > 0 are needed")
        }
    }
}

/** Bytes of bodies moved so far, headers and TLS not counted. */
class Traffic {
    internal val sent = AtomicLong()
    internal val received = AtomicLong()
    val up: Long get() = sent.get()
    val down: Long get() = received.get()
}

/**
 * Fleet calls over HTTP/1.1, signed with the node key; safe to use from several threads.
 *
 * Every Fleet call may be repeated, so one policy covers them all: connection errors, 429 and 5xx are
 * repeated after a back-off.
 *
 * @param rootCertificate PEM of the authority that signed the server's certificate; null for the system's.
 * @param maxResponseBytes bound on an answer's body.
 * @param sleep waits for so many seconds.
 * @throws ConfigError the root certificate cannot be used.
 */
class HttpTransport(
    private val endpoint: Endpoint,
    private val nodeKey: NodeKey,
    rootCertificate: ByteArray? = null,
    private val retry: RetryPolicy = RetryPolicy(),
    private val maxResponseBytes: Int = 8 shl 20,
    private val clock: ServerClock = ServerClock(),
    private val traffic: Traffic = Traffic(),
    private val sleep: (Double) -> Unit = { Thread.sleep((it * 1000).toLong()) },
) : Transport {
    private class Answer(val status: Int, val date: Double?, val content: ByteArray)

    private val sockets: SSLSocketFactory? = rootCertificate?.let(::trusting)
    private val random = SecureRandom()

    /**
     * Sends [body] and returns the answer's body.
     *
     * @throws ConnectionFailedError no answer after all attempts.
     * @throws ServerBusyError 429 or 5xx after all attempts.
     * @throws AuthenticationError 401, also after correcting for a wrong clock.
     * @throws ProtocolError an answer larger than the limit.
     * @throws FleetError any other refusal.
     */
    override fun post(path: String, body: ByteArray): ByteArray {
        for (attempt in 1 until retry.attempts) {
            try {
                return authenticated(path, body)
            } catch (_: ConnectionFailedError) {
                val bound = min(retry.capS, retry.baseS * Math.pow(2.0, attempt - 1.0))
                sleep(random.nextDouble() * bound)
            }
        }
        return authenticated(path, body)
    }

    /** Sends once; on a 401 that the clock explains, once more with the server's time. */
    private fun authenticated(path: String, body: ByteArray): ByteArray {
        var answer = exchange(path, body)
        val skew = answer.date?.let { it - clock.now() } ?: 0.0
        if (answer.status == 401 && abs(skew) > CLOCK_TOLERANCE_S) {
            clock.correct(skew)
            answer = exchange(path, body)
        }
        val status = answer.status
        if (status == 200) return answer.content
        if (status == 429 || status >= 500) {
            val text = String(answer.content, Charsets.UTF_8).take(200)
            throw ServerBusyError("${endpoint.host} answers $status to $path: $text; try later")
        }
        if (status == 401) {
            throw AuthenticationError(
                "${endpoint.host} refuses this node's signature on $path: the node key is not the one of this " +
                    "node id, or the clock is wrong (it differs from the server's by " +
                    "${Math.round(skew + clock.offsetS)} s); register the public key with flwr supernode " +
                    "register and set the clock",
            )
        }
        throw refusal(path, status, answer.content)
    }

    /** Sends once, and names what went wrong below HTTP. */
    private fun exchange(path: String, body: ByteArray): Answer {
        try {
            return send(URL(endpoint.url + path).openConnection() as HttpURLConnection, path, body)
        } catch (error: IOException) {
            val causes = generateSequence<Throwable>(error) { it.cause }.take(10)
            val refused = causes.firstOrNull { it is CertificateException || it is SSLPeerUnverifiedException }
            if (refused != null) {
                throw FleetError(
                    "${endpoint.host} shows a certificate that the root certificate does not vouch for " +
                        "(${refused.message}); check the root certificate and the host name",
                    error,
                )
            }
            throw ConnectionFailedError("${endpoint.host}:${endpoint.port} does not answer $path: $error", error)
        }
    }

    private fun send(connection: HttpURLConnection, path: String, body: ByteArray): Answer {
        if (connection is HttpsURLConnection) sockets?.let { connection.sslSocketFactory = it }
        val timeout = (retry.timeoutS * 1000).toInt()
        connection.connectTimeout = timeout
        connection.readTimeout = timeout
        connection.requestMethod = "POST"
        connection.doOutput = true
        connection.useCaches = false
        connection.instanceFollowRedirects = false // a redirect could lead to plain HTTP
        for ((name, value) in headers()) connection.setRequestProperty(name, value)
        connection.outputStream.use { it.write(body) }
        traffic.sent.addAndGet(body.size.toLong())
        val status = connection.responseCode
        val date = connection.getHeaderFieldDate("Date", Long.MIN_VALUE).takeIf { it in CLOCK_RANGE_MS }
        return Answer(status, date?.let { it / 1000.0 }, content(connection, status, path))
    }

    /** The body, whole and within the limit. */
    private fun content(connection: HttpURLConnection, status: Int, path: String): ByteArray {
        val limit = if (status == 200) maxResponseBytes else MAX_ERROR_BYTES
        val announced = connection.contentLengthLong
        val chunked = connection.getHeaderField("Transfer-Encoding")?.lowercase() == "chunked"
        if (announced < 0 && !chunked) throw IOException("an answer that does not say how long it is")
        val stream = (if (status < 400) connection.inputStream else connection.errorStream) ?: return ByteArray(0)
        val content = try {
            readAtMost(stream, limit + 1)
        } finally {
            stream.close() // keeps the connection alive where the body was read to its end
        }
        traffic.received.addAndGet(content.size.toLong())
        if (content.size > limit) {
            connection.disconnect()
            throw ProtocolError("the answer to $path is larger than $limit bytes")
        }
        if (content.size < announced) throw IOException("${content.size} bytes of $announced arrived")
        return content
    }

    private fun headers(): Map<String, String> {
        val timestamp = timestamp(clock.now())
        val base64 = Base64.getEncoder()
        return mapOf(
            "Content-Type" to MEDIA_TYPE,
            "Accept" to MEDIA_TYPE,
            "Accept-Encoding" to "identity", // else Android asks for gzip, and lengths no longer bound anything
            "flwr-public-key" to base64.encodeToString(nodeKey.publicPem),
            "flwr-timestamp" to timestamp,
            "flwr-signature" to base64.encodeToString(nodeKey.sign(timestamp.toByteArray(Charsets.US_ASCII))),
        )
    }

    companion object {
        private const val MEDIA_TYPE = "application/protobuf"
        private const val MAX_ERROR_BYTES = 64 * 1024

        /** Flower accepts a timestamp up to 5 s in its future: beyond this, a 401 may be due to the clock. */
        private const val CLOCK_TOLERANCE_S = 4.0

        /** 2020 to 2099: what a server may correct this device's clock to, for it signs what it takes for the time. */
        private val CLOCK_RANGE_MS = 1_577_836_800_000L until 4_102_444_800_000L
        private val ISO = DateTimeFormatter.ofPattern("yyyy-MM-dd'T'HH:mm:ss.SSSSSSxxx", Locale.ROOT).withZone(ZoneOffset.UTC)

        /** Seconds since the epoch as Python's `isoformat` writes them, with microseconds. */
        internal fun timestamp(seconds: Double): String {
            val whole = Math.floor(seconds)
            val micros = ((seconds - whole) * 1e6).toLong()
            return ISO.format(Instant.ofEpochSecond(whole.toLong(), micros * 1000))
        }

        private fun readAtMost(stream: InputStream, most: Int): ByteArray {
            val out = ByteArrayOutputStream()
            val buffer = ByteArray(1 shl 16)
            while (out.size() < most) {
                val count = stream.read(buffer, 0, min(buffer.size, most - out.size()))
                if (count < 0) break
                out.write(buffer, 0, count)
            }
            return out.toByteArray()
        }

        /** Sockets that trust the authorities in a PEM text, and no other; host names are checked above them. */
        private fun trusting(pem: ByteArray): SSLSocketFactory = try {
            val authorities = CertificateFactory.getInstance("X.509").generateCertificates(ByteArrayInputStream(pem))
            if (authorities.isEmpty()) throw CertificateException("it holds no certificate")
            val store = KeyStore.getInstance(KeyStore.getDefaultType())
            store.load(null, null)
            authorities.forEachIndexed { index, authority -> store.setCertificateEntry("root$index", authority) }
            val trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm())
            trust.init(store)
            SSLContext.getInstance("TLS").apply { init(null, trust.trustManagers, null) }.socketFactory
        } catch (error: GeneralSecurityException) {
            throw ConfigError(
                "the root certificate cannot be used (${error.message}); give the PEM of the authority that " +
                    "signed the server's certificate",
                error,
            )
        }
    }
}
