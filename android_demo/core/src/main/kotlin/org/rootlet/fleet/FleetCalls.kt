package org.rootlet.fleet

import java.nio.ByteBuffer
import org.rootlet.wire.Field
import org.rootlet.wire.FieldValue
import org.rootlet.wire.Protobuf
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.Table
import org.rootlet.wire.WireError
import org.rootlet.wire.WireType

/**
 * The calls of Flower's Fleet API that a device makes: no state but the node id, no policy.
 *
 * Each throws what [Transport.post] does, and [ProtocolError] on an answer that is not protobuf.
 *
 * @property nodeKey identifies this node.
 * @property heartbeatIntervalS announced to the server, in seconds.
 * @property limits bounds on what is received.
 */
open class FleetCalls(
    private val transport: Transport,
    val nodeKey: NodeKey,
    val heartbeatIntervalS: Double,
    val limits: Limits,
) {
    /** Given by the server at activation; 0 before. It is the key's for as long as the server remembers that. */
    @Volatile
    var nodeId: Long = 0
        protected set

    /** Registers the node key (servers without node authentication only); returns the node id. */
    fun registerNode(): Long = nodeId("register-node", ProtobufWriter().bytes(1, nodeKey.publicPem))

    /** Goes online; returns the node id. */
    fun activateNode(): Long = nodeId(
        "activate-node",
        ProtobufWriter().bytes(1, nodeKey.publicPem).doubleUnlessZero(2, heartbeatIntervalS),
    )

    /** Goes offline. */
    fun deactivateNode() {
        call("deactivate-node", Codec.node(nodeId), emptyMap())
    }

    /** Forgets the node key for good (servers without node authentication only). */
    fun unregisterNode() {
        call("unregister-node", Codec.node(nodeId), emptyMap())
    }

    /**
     * Tells that node [id] is alive; returns whether the server knows it.
     *
     * The server counts the node as online from then on, even where it had been offline.
     */
    fun sendNodeHeartbeat(id: Long): Boolean {
        val request = ProtobufWriter().message(1, Codec.node(id)).doubleUnlessZero(2, heartbeatIntervalS)
        return call("send-node-heartbeat", request, SUCCESS).flag("success")
    }

    /**
     * The next message for this node, or null. The server hands each out once.
     *
     * @throws ProtocolError a message for another node, or a tree beyond the limits.
     */
    fun pullMessages(): Envelope? {
        val answer = call("pull-messages", asNode(), PULLED)
        val messages = answer.filter { it.name == "messages_list" }
        val trees = answer.filter { it.name == "message_object_trees" }
        if (messages.size != trees.size) {
            throw ProtocolError("pull-messages answers with unequal numbers of messages and trees")
        }
        if (messages.isEmpty()) return null
        if (messages.size > 1) {
            throw ProtocolError("pull-messages answers with ${messages.size} messages; flwr 1.41 hands out one at a time")
        }
        val envelope = decoded("pull-messages") {
            Envelope(Codec.readMessage(messages[0].bytes).metadata, Codec.readTree(trees[0].bytes, limits.objects))
        }
        return envelope.also { it.check(nodeId, limits) }
    }

    /**
     * Announces a reply; returns the upload session's id and the objects to upload.
     *
     * @param runtimeS seconds of work, for the server's statistics.
     */
    fun pushMessages(reply: SealedReply, runtimeS: Double): Pair<String, List<String>> {
        val runtime = ByteBuffer.allocate(8).order(java.nio.ByteOrder.LITTLE_ENDIAN).putDouble(runtimeS).array()
        val hasContent = reply.message.error == null // Flower wants the content present, and empty
        val request = asNode()
            .message(2, Codec.message(reply.message, hasContent))
            .message(3, Codec.tree(reply.tree))
            .bytes(4, runtime)
        val answer = call("push-messages", request, PUSHED)
        return decoded("push-messages") {
            val session = answer.firstOrNull { it.name == "session_id" }?.let { Protobuf.text(it, it.name) }.orEmpty()
            session to answer.filter { it.name == "objects_to_push" }.map { Protobuf.text(it, it.name) }
        }
    }

    /** An object's bytes; empty where it is announced only, null where it is unknown. */
    fun pullObject(runId: Long, objectId: String): ByteArray? {
        val answer = call("pull-object", asNode().numberUnlessZero(2, runId).text(3, objectId), OBJECT)
        if (!answer.flag("object_found")) return null
        val content = answer.firstOrNull { it.name == "object_content" }?.bytes ?: return ByteArray(0)
        return ByteArray(content.remaining()).also { content.get(it) }
    }

    /** Uploads an object; returns whether the session wanted it and it was stored. */
    fun pushObject(runId: Long, sessionId: String, objectId: String, content: ByteArray): Boolean {
        val request = asNode().numberUnlessZero(2, runId).text(3, objectId).bytes(4, content).textUnlessEmpty(5, sessionId)
        return call("push-object", request, STORED).flag("stored")
    }

    /** Lets the server delete a message's objects. */
    fun confirmMessageReceived(envelope: Envelope) {
        val request = asNode().numberUnlessZero(2, envelope.metadata.runId).text(3, envelope.metadata.messageId)
        call("confirm-message-received", request, emptyMap())
    }

    private fun asNode(): ProtobufWriter = ProtobufWriter().message(1, Codec.node(nodeId))

    private fun nodeId(name: String, request: ProtobufWriter): Long =
        call(name, request, NODE_ID).firstOrNull()?.number ?: 0L

    private fun call(name: String, request: ProtobufWriter, table: Table): List<FieldValue> {
        val body = transport.post("/v1/fleet/$name", request.toByteArray())
        return decoded(name) { Protobuf.read(ByteBuffer.wrap(body), table, name, skipUnknown = true, maxValues = MAX_VALUES) }
    }

    private fun <T> decoded(name: String, read: () -> T): T = try {
        read()
    } catch (error: WireError) {
        throw ProtocolError("$name answers with garbage: ${error.message}", error)
    }

    private fun List<FieldValue>.flag(name: String): Boolean = any { it.name == name && it.number != 0L }

    private companion object {
        const val MAX_VALUES = 100_000
        val NODE_ID: Table = mapOf(1 to Field("node_id", WireType.VARINT))
        val SUCCESS: Table = mapOf(1 to Field("success", WireType.VARINT))
        val STORED: Table = mapOf(1 to Field("stored", WireType.VARINT))
        val PULLED: Table = mapOf(
            2 to Field("messages_list", repeated = true),
            3 to Field("message_object_trees", repeated = true),
        )
        val PUSHED: Table = mapOf(3 to Field("objects_to_push", repeated = true), 4 to Field("session_id"))
        val OBJECT: Table = mapOf(1 to Field("object_found", WireType.VARINT), 3 to Field("object_content"))
    }
}
