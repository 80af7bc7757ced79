package org.rootlet.fleet

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Test
import org.rootlet.wire.ProtobufWriter

class FleetCallsTest {
    @Test
    fun everyRequestIsThatOfPython() {
        val sent = LinkedHashMap<String, String>()
        val calls = calls { path, body ->
            val name = path.removePrefix("/v1/fleet/")
            sent[if (name in sent) "$name again" else name] = Vectors.toHex(body)
            if (name == "pull-messages") Vectors.bytes("pulled") else ByteArray(0)
        }
        val envelope = calls.pullMessages()!!
        calls.registerNode()
        calls.activateNode()
        calls.sendNodeHeartbeat(NODE)
        calls.pullObject(77, envelope.metadata.messageId)
        calls.confirmMessageReceived(envelope)
        calls.pushMessages(envelope.seal(Answer(Vectors.records()), NOW), 0.0)
        calls.pushMessages(envelope.seal(Answer(emptyMap(), "too much", ERROR_REFUSED), NOW), 1.5)
        calls.pushObject(77, "a-session", envelope.metadata.messageId, "content".toByteArray())
        calls.deactivateNode()
        calls.unregisterNode()
        assertEquals(Vectors.map("calls").toSortedMap(), sent.toSortedMap())
    }

    @Test
    fun whatIsPulledIsReadWhole() {
        val envelope = calls { Vectors.bytes("pulled") }.pullMessages()!!
        assertEquals(
            Metadata(77, Vectors.text("message_id"), 1, NODE, "", "3", 60.5, "train", 1.75e9),
            envelope.metadata,
        )
        assertEquals(1.75e9 + 60.5, envelope.expiresAt, 0.0)
        val request = envelope.open(Vectors.objects())
        assertEquals(Triple(77L, "3", "train"), Triple(request.runId, request.groupId, request.messageType))
        assertEquals(listOf("arrays", "config", "metrics"), request.records.keys.toList())
        assertNull(calls { ByteArray(0) }.pullMessages())
    }

    @Test
    fun answersThatAreWrongAreRefused() {
        val pulled = Vectors.bytes("pulled")
        val wrong = mapOf(
            "cut short" to pulled.copyOf(pulled.size - 1),
            "two messages" to pulled + pulled,
            "no tree" to ProtobufWriter().bytes(2, ByteArray(0)).toByteArray(),
            "another node" to ProtobufWriter().bytes(2, ByteArray(0)).bytes(3, ByteArray(0)).toByteArray(),
        )
        for ((name, body) in wrong) assertThrows(name, ProtocolError::class.java) { calls { body }.pullMessages() }
        assertThrows(ProtocolError::class.java) { calls(Limits(objects = 5)) { _, _ -> pulled }.pullMessages() }
    }

    @Test
    fun aDeepTreeIsRefusedBeforeTheStackEnds() {
        var tree = ObjectTree("0".repeat(64))
        repeat(200) { tree = ObjectTree("0".repeat(64), listOf(tree)) }
        val body = ProtobufWriter().bytes(2, ByteArray(0)).message(3, Codec.tree(tree)).toByteArray()
        val error = assertThrows(ProtocolError::class.java) { calls { body }.pullMessages() }
        assertEquals(true, error.message!!.contains("more than 100 levels"))
    }

    companion object {
        const val NOW = 1.75e9 + 1
        const val NODE = Long.MIN_VALUE + 5 // 2^63 + 5 as an unsigned number

        private val PEM = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".toByteArray()

        fun calls(answer: () -> ByteArray): FleetCalls = calls { _, _ -> answer() }

        fun calls(limits: Limits = Limits(), answer: (String, ByteArray) -> ByteArray): FleetCalls =
            object : FleetCalls(Transport(answer), Key, 15.0, limits) {
                init {
                    nodeId = NODE
                }
            }

        private object Key : NodeKey {
            override val publicPem = PEM

            override fun sign(content: ByteArray) = content
        }
    }
}
