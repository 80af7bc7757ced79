package org.rootlet.fleet

import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.CopyOnWriteArrayList
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.wire.ProtobufWriter

/** Sessions with a server that hands out the message of the vectors, once, and takes its reply. */
class FleetSessionTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val events = CopyOnWriteArrayList<FleetEvent>()
    private val server = Server()
    private var stop = StopSignal()
    private var now = FleetCallsTest.NOW

    /** Answers as Flower does; [failing] comes before that. */
    private inner class Server : Transport {
        val calls = CopyOnWriteArrayList<String>()
        val stored: MutableMap<String, ByteArray> = ConcurrentHashMap(Vectors.objects())
        var handedOut = false
        var wanted: List<String>? = null
        var failing: (String) -> FleetError? = { null }
        var knowsNode = true

        override fun post(path: String, body: ByteArray): ByteArray {
            val name = path.removePrefix("/v1/fleet/")
            calls.add(name)
            failing(name)?.let { throw it }
            val answer = ProtobufWriter()
            when (name) {
                "activate-node" -> answer.varint(1, FleetCallsTest.NODE)
                "send-node-heartbeat" -> answer.varint(1, if (knowsNode) 1 else 0)
                "pull-messages" -> if (!handedOut) {
                    handedOut = true
                    return Vectors.bytes("pulled")
                }
                // Objects are asked for by their 64 digits; a reply's are gone, for it has been read.
                "pull-object" -> stored.entries.firstOrNull { it.key in String(body, Charsets.ISO_8859_1) }?.let {
                    answer.varint(1, 1).varint(2, 1).bytes(3, it.value)
                }
                "push-messages" -> {
                    val ids = wanted ?: HEX.findAll(String(body, Charsets.ISO_8859_1).substringAfterLast("train"))
                        .map { it.value }.filter { it !in stored }.distinct().toList()
                    ids.forEach { answer.text(3, it) }
                    answer.text(4, "a-session")
                }
                "push-object" -> answer.varint(1, 1)
            }
            return answer.toByteArray()
        }
    }

    private fun run(
        mailbox: Mailbox = Mailbox(),
        participant: Answerer = Adder(1f),
        heartbeatS: Double = 15.0,
        until: (FleetEvent) -> Boolean,
    ) {
        stop = StopSignal()
        val key = object : NodeKey {
            override val publicPem = "key".toByteArray()

            override fun sign(content: ByteArray) = content
        }
        val connection = FleetConnection("here:1", key, server, heartbeatS, Limits(), ServerClock { now }) {}
        FleetSession(connection, participant, mailbox, lingerS = 1.0, activationWaitS = 0.5) {
            events.add(it)
            if (until(it)) stop.set()
        }.run(stop)
    }

    private fun kinds() = events.map { it.kind }

    @Test(timeout = 20_000)
    fun aMessageIsAnsweredAndItsReplyAwaited() {
        run { it.kind == EventKind.PUSHED }
        val expected = listOf("ACTIVATED", "PULLED", "ANSWERED", "PUSHED", "TAKEN", "DEACTIVATED")
        assertEquals(expected, kinds().map { it.name })
        assertTrue(server.calls.indexOf("confirm-message-received") > server.calls.indexOf("pull-object"))
        assertEquals("deactivate-node", server.calls.last())
        assertEquals(Triple(77L, "train", ""), events[1].let { Triple(it.runId, it.messageType, it.detail) })
    }

    @Test(timeout = 20_000)
    fun anExpiredMessageIsDropped() {
        now += 60
        run { it.kind == EventKind.DROPPED }
        assertEquals("it has expired", events.first { it.kind == EventKind.DROPPED }.detail)
        assertTrue(EventKind.ANSWERED !in kinds())
    }

    @Test(timeout = 20_000)
    fun aMessageWhoseObjectsAreGoneOrForgedIsDropped() {
        val root = Vectors.text("message_id")
        server.stored[root] = server.stored.getValue(root) + 0
        run { it.kind == EventKind.DROPPED }
        assertTrue(events.last { it.kind == EventKind.DROPPED }.detail.contains("does not match its hash"))
        server.stored.remove(root)
        server.handedOut = false
        run { it.kind == EventKind.DROPPED }
        assertTrue(events.last { it.kind == EventKind.DROPPED }.detail.contains("no longer has"))
    }

    @Test(timeout = 20_000)
    fun aServerThatAsksForOtherObjectsGetsNone() {
        server.wanted = listOf("0".repeat(64))
        run { it.kind == EventKind.DROPPED }
        assertTrue(events.last { it.kind == EventKind.DROPPED }.detail.contains("unknown objects"))
        assertTrue("push-object" !in server.calls)
    }

    @Test(timeout = 20_000)
    fun aLostConnectionIsWaitedOutAndTheWorkGoesOn() {
        var failures = 1
        server.failing = { if (it == "pull-object" && failures-- > 0) ConnectionFailedError("no network") else null }
        run { it.kind == EventKind.PUSHED }
        val middle = listOf(EventKind.PULLED, EventKind.CONNECTION_LOST, EventKind.CONNECTION_RESTORED, EventKind.ANSWERED)
        assertEquals(middle, kinds().subList(1, 5))
    }

    @Test(timeout = 20_000)
    fun anInterruptedTrainingIsTakenUpAfterARestart() {
        val interrupted = Answerer { _, shouldStop ->
            stop.set()
            if (shouldStop()) null else Answer(emptyMap(), "not interrupted", ERROR_FAILED)
        }
        run(Mailbox(folder.root), interrupted) { false }
        assertEquals(listOf("ACTIVATED", "PULLED", "DEACTIVATED"), kinds().map { it.name })
        events.clear()
        run(Mailbox(folder.root)) { it.kind == EventKind.PUSHED }
        val expected = listOf("RESUMED", "RECOVERED", "ANSWERED", "PUSHED", "TAKEN", "DEACTIVATED")
        assertEquals(expected, kinds().map { it.name })
        assertEquals("at stage FETCHED", events[1].detail)
    }

    @Test(timeout = 20_000)
    fun aNodeThatTheServerForgotGoesOnlineAgain() {
        server.handedOut = true
        server.knowsNode = false
        var activations = 0
        run(heartbeatS = 0.2) { it.kind == EventKind.ACTIVATED && ++activations == 2 }
        assertEquals(2, server.calls.count { it == "activate-node" })
    }

    @Test(timeout = 20_000)
    fun aNodeThatCountsAsOnlineIsWaitedForAndNotForEver() {
        server.failing = {
            when (it) {
                "activate-node" -> NodeStillActiveError("still online")
                "register-node" -> ServerRefusedError("no", 403, REGISTRATION_DISABLED)
                else -> null
            }
        }
        assertThrows(NodeStillActiveError::class.java) { run { false } }
        assertEquals(listOf(EventKind.WAITING_TO_ACTIVATE), kinds())
    }

    @Test(timeout = 20_000)
    fun aReplyThatNobodyReadsIsWaitedForWithinABound() {
        server.failing = { if (it == "pull-object" && "push-object" in server.calls) ServerBusyError("busy") else null }
        run { it.kind == EventKind.PUSHED }
        assertEquals(listOf("PUSHED", "DROPPED", "DEACTIVATED"), kinds().map { it.name }.takeLast(3))
    }

    private companion object {
        val HEX = Regex("[0-9a-f]{64}")
    }
}
