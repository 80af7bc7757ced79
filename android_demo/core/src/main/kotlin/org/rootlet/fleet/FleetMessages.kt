package org.rootlet.fleet

import java.nio.ByteBuffer
import org.rootlet.wire.Field
import org.rootlet.wire.FieldValue
import org.rootlet.wire.Protobuf
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.Table
import org.rootlet.wire.WireError
import org.rootlet.wire.WireType.FIXED64
import org.rootlet.wire.WireType.VARINT

/** Flower's Metadata; node ids are unsigned in 64 bits, times are seconds since the epoch. */
class Metadata(
    val runId: Long,
    val messageId: String,
    val sourceNode: Long,
    val targetNode: Long,
    val replyTo: String,
    val groupId: String,
    val ttl: Double,
    val messageType: String,
    val createdAt: Double,
) {
    internal fun write(): ProtobufWriter {
        val out = ProtobufWriter()
        if (runId != 0L) out.varint(1, runId)
        if (messageId.isNotEmpty()) out.text(2, messageId)
        if (sourceNode != 0L) out.varint(3, sourceNode)
        if (targetNode != 0L) out.varint(4, targetNode)
        if (replyTo.isNotEmpty()) out.text(5, replyTo)
        if (groupId.isNotEmpty()) out.text(6, groupId)
        if (ttl != 0.0) out.double(7, ttl)
        if (messageType.isNotEmpty()) out.text(8, messageType)
        if (createdAt != 0.0) out.double(9, createdAt)
        return out
    }
}

/** A message that the server announced to this node. */
class Envelope(val metadata: Metadata, val tree: ObjectTree) {
    /** When the server stops waiting for a reply, in seconds since the epoch, by its clock. */
    val expiresAt: Double get() = metadata.createdAt + metadata.ttl
}

/** What the server asks of this device. */
class FleetRequest(val runId: Long, val messageType: String, val records: Map<String, Record>, val bytes: Long)

/** What a device answers: records, or the reason why there are none, with Flower's or rootlet's code. */
class Answer(val records: Map<String, Record>, val error: String = "", val code: Int = 0)

/** A reply in objects, ready to be pushed. */
class SealedReply internal constructor(
    val runId: Long,
    val messageId: String,
    internal val message: ProtobufWriter,
    val tree: ObjectTree,
    val contents: Map<String, ByteArray>,
)

/** Fields of Flower's messages that a device reads; what it does not know is passed over. */
internal object FleetMessages {
    private val METADATA: Table = mapOf(
        1 to Field("run_id", VARINT), 2 to Field("message_id"), 3 to Field("src_node_id", VARINT),
        4 to Field("dst_node_id", VARINT), 5 to Field("reply_to_message_id"), 6 to Field("group_id"),
        7 to Field("ttl", FIXED64), 8 to Field("message_type"), 9 to Field("created_at", FIXED64),
    )
    private val MESSAGE: Table = mapOf(1 to Field("metadata"), 2 to Field("content"), 3 to Field("error"))
    private val TREE: Table = mapOf(1 to Field("object_id"), 2 to Field("children", repeated = true))
    private const val DEEPEST = 8

    fun metadata(message: FieldValue): Metadata {
        val outer = fields(message.bytes, MESSAGE, "Message")
        val found = fields(outer["metadata"]?.bytes ?: EMPTY, METADATA, "Metadata")
        fun text(name: String) = found[name]?.let { Protobuf.text(it, name) } ?: ""
        fun double(name: String) = found[name]?.bytes?.getDouble() ?: 0.0
        return Metadata(
            found["run_id"]?.number ?: 0, text("message_id"), found["src_node_id"]?.number ?: 0,
            found["dst_node_id"]?.number ?: 0, text("reply_to_message_id"), text("group_id"), double("ttl"),
            text("message_type"), double("created_at"),
        )
    }

    /** The same of a Message object's body. */
    fun metadata(body: ByteArray): Metadata = guarded("Message") {
        val wrapped = ProtobufWriter().bytes(1, body).toByteArray()
        metadata(Protobuf.read(ByteBuffer.wrap(wrapped), mapOf(1 to Field("message")), "Message").single())
    }

    fun tree(message: ByteBuffer, depth: Int = 0): ObjectTree {
        if (depth > DEEPEST) throw ProtocolError("an object tree deeper than $DEEPEST")
        val found = Protobuf.read(message, TREE, "ObjectTree", skipUnknown = true)
        val id = found.firstOrNull { it.name == "object_id" }?.let { Protobuf.text(it, "object_id") } ?: ""
        return ObjectTree(id, found.filter { it.name == "children" }.map { tree(it.bytes, depth + 1) })
    }

    fun fields(message: ByteBuffer, table: Table, kind: String): Map<String, FieldValue> =
        Protobuf.read(message, table, kind, skipUnknown = true).associateBy { it.name }

    fun <T> guarded(call: String, read: () -> T): T = try {
        read()
    } catch (error: WireError) {
        throw ProtocolError("$call answers with garbage: ${error.message}", error)
    }

    private val EMPTY: ByteBuffer = ByteBuffer.allocate(0)
}

/**
 * The request in an envelope.
 *
 * @throws ProtocolError malformed objects, beyond the limits, or an error where a request belongs.
 */
internal fun openEnvelope(envelope: Envelope, contents: Map<String, ByteArray>, limits: FleetLimits): FleetRequest {
    val (body, records) = ObjectReader(contents, limits).message(envelope.metadata.messageId)
    if (records == null) throw ProtocolError("message ${envelope.metadata.messageId} is an error, not a request")
    val metadata = FleetMessages.metadata(body)
    if (metadata.runId != envelope.metadata.runId) throw ProtocolError("a message of another run than announced")
    return FleetRequest(metadata.runId, metadata.messageType, records, contents.values.sumOf { it.size.toLong() })
}

/** The reply to an envelope; it expires when the request does. [now] is the server's time in seconds. */
internal fun sealReply(envelope: Envelope, answer: Answer, now: Double): SealedReply {
    val asked = envelope.metadata
    fun metadata(messageId: String) = Metadata(
        asked.runId, messageId, asked.targetNode, asked.sourceNode, asked.messageId, asked.groupId,
        envelope.expiresAt - now, asked.messageType, now,
    ).write()
    val failed = answer.error.isNotEmpty()
    val error = ProtobufWriter().varint(1, answer.code.toLong() shl 1).text(2, answer.error)
    val body = ProtobufWriter().message(1, metadata("")).apply { if (failed) message(3, error) }.toByteArray()
    val objects = ObjectSet()
    val id = objects.addMessage(body, if (failed) null else answer.records)
    val message = ProtobufWriter().message(1, metadata(id))
    if (failed) message.message(3, error) else message.message(2, ProtobufWriter()) // present, and empty
    return SealedReply(asked.runId, id, message, objects.tree(id), objects.contents)
}
