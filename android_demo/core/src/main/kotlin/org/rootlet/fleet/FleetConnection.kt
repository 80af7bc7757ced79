package org.rootlet.fleet

import java.nio.ByteBuffer
import org.rootlet.wire.Field
import org.rootlet.wire.FieldValue
import org.rootlet.wire.Protobuf
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.Table
import org.rootlet.wire.WireType.VARINT

/**
 * A node's connection to a Flower SuperLink, in the calls of its Fleet API (flwr 1.41).
 *
 * @param heartbeatS announced to the server, in seconds; Flower takes 10 to 1800.
 */
class FleetConnection(
    private val transport: FleetTransport,
    private val nodeKey: NodeKey,
    val heartbeatS: Double = 15.0,
    val limits: FleetLimits = FleetLimits(),
) {
    init {
        require(heartbeatS in 10.0..1800.0) { "heartbeatS is $heartbeatS; Flower accepts 10 to 1800 s" }
    }

    /** Given by the server at activation; 0 before. */
    @Volatile
    var nodeId = 0L
        private set

    /** The server's time, in seconds since the epoch. */
    val now: Double get() = transport.nowMs() / 1000.0

    /**
     * Goes online, registering the key first where the server wants that; returns the node id.
     *
     * @throws NodeStillActiveError the server counts the key as online, or does not know it.
     */
    fun activate(): Long {
        nodeId = try {
            activateNode()
        } catch (error: NodeStillActiveError) {
            if (!register()) throw error
            activateNode()
        }
        return nodeId
    }

    /** Goes on as [known], which this key had before; whether the server agrees. */
    fun resume(known: Long): Boolean = try {
        sendHeartbeat(known).also { if (it) nodeId = known }
    } catch (_: AuthenticationError) {
        false
    }

    /** Stays online; whether the server still knows this node. */
    fun heartbeat(): Boolean = sendHeartbeat(nodeId)

    /** Goes offline; repeating it is harmless. */
    fun deactivate() {
        try {
            call("deactivate-node", ProtobufWriter().varint(1, nodeId), emptyMap())
        } catch (error: ServerRefusedError) {
            if (error.code != FleetTransport.DEACTIVATION_FAILED) throw error
        }
    }

    /** The next message for this node, or null. The server hands each out once. */
    fun pullMessages(): Envelope? = FleetMessages.guarded("pull-messages") {
        val found = call("pull-messages", node(), PULLED)
        val messages = found.filter { it.name == "messages_list" }
        val trees = found.filter { it.name == "message_object_trees" }
        if (messages.size != trees.size || messages.size > 1) {
            throw ProtocolError("pull-messages answers with ${messages.size} messages and ${trees.size} trees")
        }
        messages.firstOrNull()?.let { message ->
            val envelope = Envelope(FleetMessages.metadata(message), FleetMessages.tree(trees[0].bytes))
            if (envelope.metadata.targetNode != nodeId) throw ProtocolError("a message for another node was handed to this one")
            if (envelope.tree.ids(limits)[0] != envelope.metadata.messageId) throw ProtocolError("a message with the objects of another")
            envelope
        }
    }

    /**
     * The objects of a message by id, checked against their hashes; then the server may delete them.
     *
     * @throws MessageGoneError the server no longer has them, or did not get them in a minute.
     */
    fun fetch(envelope: Envelope): Map<String, ByteArray> {
        val contents = LinkedHashMap<String, ByteArray>()
        var left = limits.messageBytes
        for (id in envelope.tree.ids(limits)) {
            contents[id] = fetchObject(envelope.metadata.runId, id).also { left -= it.size }
            if (left < 0) throw ProtocolError("a message of more than ${limits.messageBytes} bytes")
        }
        val received = node().varint(2, envelope.metadata.runId).text(3, envelope.metadata.messageId)
        call("confirm-message-received", received, emptyMap())
        return contents
    }

    /**
     * Uploads a reply; whether the server holds it afterwards. False means that it no longer wants it, or took it
     * already. Repeating the call is harmless.
     *
     * @throws RunEndedError the run has ended.
     */
    fun push(reply: SealedReply): Boolean {
        repeat(PUSH_ATTEMPTS) {
            val announced = node().message(2, reply.message).message(3, reply.tree.write())
            val found = FleetMessages.guarded("push-messages") { call("push-messages", announced, PUSHED) }
            val session = found.firstOrNull { it.name == "session_id" }?.let { Protobuf.text(it, "session_id") } ?: ""
            val wanted = found.filter { it.name == "objects_to_push" }.map { Protobuf.text(it, "objects_to_push") }
            if (wanted.isEmpty()) return !taken(reply)
            val stored = wanted.all { id ->
                val content = reply.contents[id] ?: throw ProtocolError("the server asks for unknown objects")
                pushObject(reply.runId, session, id, content)
            }
            if (stored) return true
        }
        throw ProtocolError("the server did not store reply ${reply.messageId} in $PUSH_ATTEMPTS attempts")
    }

    /** Whether the server no longer holds a pushed reply: it was read, or the run is over. */
    fun taken(reply: SealedReply): Boolean = try {
        pullObject(reply.runId, reply.messageId) == null
    } catch (_: RunEndedError) {
        true
    }

    private fun activateNode(): Long =
        call("activate-node", ProtobufWriter().bytes(1, nodeKey.publicPem).double(2, heartbeatS), ONE_NUMBER).single("activate-node")

    private fun register(): Boolean = try {
        call("register-node", ProtobufWriter().bytes(1, nodeKey.publicPem), ONE_NUMBER)
        true
    } catch (error: ServerRefusedError) {
        if (error.code !in setOf(FleetTransport.REGISTRATION_DISABLED, FleetTransport.PUBLIC_KEY_IN_USE)) throw error
        false
    }

    private fun sendHeartbeat(id: Long): Boolean {
        val message = ProtobufWriter().message(1, ProtobufWriter().varint(1, id)).double(2, heartbeatS)
        return call("send-node-heartbeat", message, ONE_NUMBER).any { it.number != 0L }
    }

    private fun fetchObject(runId: Long, id: String): ByteArray {
        var waited = 0L
        var wait = 50L
        while (true) {
            val content = pullObject(runId, id) ?: throw MessageGoneError("the server no longer has object $id")
            if (content.isNotEmpty()) {
                if (content.size > limits.objectBytes) throw ProtocolError("object $id has ${content.size} bytes; the limit is ${limits.objectBytes}")
                if (ObjectSet.sha256(content) != id) throw ProtocolError("object $id does not match its hash")
                return content
            }
            if (waited >= OBJECT_WAIT_MS) throw MessageGoneError("object $id did not reach the server in ${waited / 1000} s")
            Thread.sleep(wait)
            waited += wait
            wait = minOf(2 * wait, 2000)
        }
    }

    /** An object's bytes; empty where it is announced only, null where it is unknown. */
    private fun pullObject(runId: Long, id: String): ByteArray? = FleetMessages.guarded("pull-object") {
        val found = call("pull-object", node().varint(2, runId).text(3, id), OBJECT).associateBy { it.name }
        if (found["object_found"]?.number != 1L) return@guarded null
        found["object_content"]?.let { value -> ByteArray(value.bytes.remaining()).also { value.bytes.get(it) } } ?: ByteArray(0)
    }

    private fun pushObject(runId: Long, session: String, id: String, content: ByteArray): Boolean {
        val sent = node().varint(2, runId).text(3, id).bytes(4, content).text(5, session)
        if (call("push-object", sent, ONE_NUMBER).any { it.number != 0L }) return true
        return pullObject(runId, id)?.isNotEmpty() == true // stored before, by a call whose answer was lost
    }

    private fun node(): ProtobufWriter = ProtobufWriter().message(1, ProtobufWriter().varint(1, nodeId))

    private fun call(name: String, message: ProtobufWriter, answer: Table): List<FieldValue> =
        FleetMessages.guarded(name) {
            Protobuf.read(ByteBuffer.wrap(transport.post(name, message.toByteArray())), answer, name, skipUnknown = true)
        }

    private fun List<FieldValue>.single(call: String): Long =
        firstOrNull()?.number ?: throw ProtocolError("$call answers without a node id")

    private companion object {
        const val OBJECT_WAIT_MS = 60_000L
        const val PUSH_ATTEMPTS = 3
        val ONE_NUMBER: Table = mapOf(1 to Field("number", VARINT))
        val PULLED: Table = mapOf(2 to Field("messages_list", repeated = true), 3 to Field("message_object_trees", repeated = true))
        val PUSHED: Table = mapOf(3 to Field("objects_to_push", repeated = true), 4 to Field("session_id"))
        val OBJECT: Table = mapOf(
            1 to Field("object_found", VARINT), 2 to Field("object_available", VARINT), 3 to Field("object_content"),
        )
    }
}
