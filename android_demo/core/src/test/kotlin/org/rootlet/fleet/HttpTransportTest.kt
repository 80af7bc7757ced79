package org.rootlet.fleet

import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.net.InetAddress
import java.net.InetSocketAddress
import java.net.ServerSocket
import java.time.Instant
import kotlin.concurrent.thread
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** The transport against a server on this machine. */
class HttpTransportTest {
    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
    private val waits = ArrayList<Double>()
    private val seen = ArrayList<Map<String, String>>()
    private val clock = ServerClock()
    private val traffic = Traffic()

    @After
    fun stop() = server.stop(0)

    @Test
    fun aCallIsSignedAndAnswered() {
        val transport = answering { it.reply(200, byteArrayOf(1, 2, 3)) }
        assertArrayEquals(byteArrayOf(1, 2, 3), transport.post("/v1/fleet/call", ByteArray(5)))
        val headers = seen.single()
        assertEquals("application/protobuf", headers["content-type"])
        val age = Instant.now().epochSecond - Instant.parse(headers.getValue("flwr-timestamp").replace("+00:00", "Z")).epochSecond
        assertTrue("$age s", age in 0..5)
        assertEquals(5L to 3L, traffic.up to traffic.down)
    }

    @Test
    fun timestampsAreWrittenAsPythonDoes() {
        assertEquals("2025-06-15T15:06:40.500000+00:00", HttpTransport.timestamp(1750000000.5))
        assertEquals("2025-06-15T15:06:40.000000+00:00", HttpTransport.timestamp(1750000000.0))
    }

    @Test
    fun aBusyServerIsAskedAgainEverLater() {
        val statuses = ArrayDeque(listOf(429, 503, 500, 200))
        val transport = answering { it.reply(statuses.removeFirst()) }
        assertEquals(0, transport.post("/v1/fleet/call", ByteArray(0)).size)
        assertEquals(4, seen.size)
        waits.forEachIndexed { n, wait -> assertTrue("$waits", wait in 0.0..0.5 * (1 shl n)) }
        val busy = answering { it.reply(503) }
        assertThrows(ServerBusyError::class.java) { busy.post("/v1/fleet/call", ByteArray(0)) }
        assertEquals(4 + 5, seen.size)
    }

    @Test
    fun nobodyThereIsAConnectionThatFailed() {
        val free = ServerSocket(0, 1, InetAddress.getLoopbackAddress()).use { it.localPort }
        val error = assertThrows(ConnectionFailedError::class.java) { transport(free).post("/v1/fleet/call", ByteArray(0)) }
        assertTrue(error.retryable)
        assertEquals(4, waits.size)
    }

    @Test
    fun aWrongClockIsCorrectedOnceAndNotTheDevices() {
        val behind = 3600.0
        val wrong = ServerClock { System.currentTimeMillis() / 1000.0 - behind }
        val transport = answering(wrong) { exchange ->
            val sent = exchange.requestHeaders.getFirst("flwr-timestamp").replace("+00:00", "Z")
            val age = Instant.now().epochSecond - Instant.parse(sent).epochSecond
            exchange.reply(if (age < 60) 200 else 401)
        }
        transport.post("/v1/fleet/call", ByteArray(0))
        assertEquals(behind, wrong.offsetS, 2.0)
        assertEquals(2, seen.size)
        transport.post("/v1/fleet/call", ByteArray(0))
        assertEquals(3, seen.size)
    }

    @Test
    fun aSignatureThatIsRefusedIsAnAuthenticationError() {
        val transport = answering { it.reply(401) }
        assertThrows(AuthenticationError::class.java) { transport.post("/v1/fleet/call", ByteArray(0)) }
        assertEquals(1 to 0.0, seen.size to clock.offsetS)
    }

    @Test
    fun refusalsNameTheirRemedy() {
        val bodies = mapOf(
            """{"code": 2004, "detail": "x"}""" to NodeStillActiveError::class.java,
            """{"code": 2007, "detail": "x"}""" to RunEndedError::class.java,
            """{"code": 2001, "detail": "x"}""" to ServerRefusedError::class.java,
            "not json" to ServerRefusedError::class.java,
        )
        for ((body, kind) in bodies) {
            val transport = answering { it.reply(412, body.toByteArray()) }
            val error = assertThrows(body, FleetError::class.java) { transport.post("/v1/fleet/call", ByteArray(0)) }
            assertEquals(kind, error.javaClass)
            if (error is ServerRefusedError) assertEquals(412, error.status)
            if ("2001" in body) assertTrue(error.message, "flwr supernode register" in error.message!!)
        }
        assertEquals(bodies.size, seen.size) // a refusal is not repeated
    }

    @Test
    fun anAnswerBeyondTheLimitIsRefused() {
        assertThrows(ProtocolError::class.java) {
            answering { it.reply(200, ByteArray(1001)) }.post("/v1/fleet/call", ByteArray(0))
        }
        val endless = answering { exchange ->
            exchange.sendResponseHeaders(200, 0) // chunked: its length is not announced
            exchange.responseBody.use { out -> runCatching { repeat(1000) { out.write(ByteArray(10_000)) } } }
        }
        assertThrows(ProtocolError::class.java) { endless.post("/v1/fleet/call", ByteArray(0)) }
        assertEquals(1000, answering { it.reply(200, ByteArray(1000)) }.post("/v1/fleet/call", ByteArray(0)).size)
    }

    @Test
    fun anAnswerThatIsCutShortIsAskedForAgain() {
        ServerSocket(0, 5, InetAddress.getLoopbackAddress()).use { listening ->
            thread(isDaemon = true) {
                for (body in listOf("abc", "abcde")) {
                    listening.accept().use { socket ->
                        val lines = socket.getInputStream().bufferedReader()
                        while (lines.readLine().isNotEmpty()) Unit.hashCode()
                        socket.getOutputStream().write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n$body".toByteArray())
                        socket.shutdownOutput()
                        socket.getInputStream().read()
                    }
                }
            }
            assertEquals("abcde", String(transport(listening.localPort).post("/v1/fleet/call", ByteArray(0))))
            assertEquals(1, waits.size)
        }
    }

    @Test
    fun aRedirectIsNotFollowed() {
        val transport = answering {
            it.responseHeaders.add("Location", "/elsewhere")
            it.reply(302)
        }
        assertThrows(ServerRefusedError::class.java) { transport.post("/v1/fleet/call", ByteArray(0)) }
        assertEquals(1, seen.size)
    }

    private fun HttpExchange.reply(status: Int, body: ByteArray = ByteArray(0)) {
        sendResponseHeaders(status, if (body.isEmpty()) -1 else body.size.toLong())
        responseBody.use { it.write(body) }
    }

    private fun answering(clock: ServerClock = this.clock, reply: (HttpExchange) -> Unit): HttpTransport {
        if (handling) server.removeContext("/")
        server.createContext("/") { exchange ->
            exchange.requestBody.readBytes()
            seen.add(exchange.requestHeaders.entries.associate { it.key.lowercase() to it.value.first() })
            exchange.use { reply(exchange) }
        }
        if (!handling) server.start()
        handling = true
        return transport(server.address.port, clock)
    }

    private var handling = false

    private fun transport(port: Int, clock: ServerClock = this.clock) = HttpTransport(
        Endpoint("127.0.0.1", port, tls = false),
        PemNodeKey.generate(),
        maxResponseBytes = 1000,
        clock = clock,
        traffic = traffic,
        sleep = { waits.add(it) },
    )

    private fun HttpExchange.use(block: (HttpExchange) -> Unit) = try {
        block(this)
    } finally {
        close()
    }
}
