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
 * Flower's Metadata; ids are unsigned 64-bit numbers.
 *
 * @property ttl seconds from [createdAt] for which the server waits for a reply.
 * @property createdAt seconds since the epoch, by the server's clock.
 */
data class Metadata(
    val runId: Long = 0,
    val messageId: String = "",
    val sourceNodeId: Long = 0,
    val targetNodeId: Long = 0,
    val replyToMessageId: String = "",
    val groupId: String = "",
    val ttl: Double = 0.0,
    val messageType: String = "",
    val createdAt: Double = 0.0,
)

/** Why a message has no content. */
data class MessageError(val code: Long, val reason: String)

/** Flower's Message without its content, which travels as objects. */
data class FleetMessage(val metadata: Metadata, val error: MessageError? = null)

/** An object and those below it, by id. */
data class ObjectTree(val objectId: String, val children: List<ObjectTree> = emptyList())

/** Protobuf codecs of what a device reads and writes; fields it never reads are skipped. */
internal object Codec {
    private const val MAX_DEPTH = 100
    private val METADATA: Table = mapOf(
        1 to Field("run_id", WireType.VARINT),
        2 to Field("message_id"),
        3 to Field("src_node_id", WireType.VARINT),
        4 to Field("dst_node_id", WireType.VARINT),
        5 to Field("reply_to_message_id"),
        6 to Field("group_id"),
        7 to Field("ttl", WireType.FIXED64),
        8 to Field("message_type"),
        9 to Field("created_at", WireType.FIXED64),
    )
    private val MESSAGE: Table = mapOf(1 to Field("metadata"), 3 to Field("error"))
    private val ERROR: Table = mapOf(1 to Field("code", WireType.VARINT), 2 to Field("reason"))
    private val TREE: Table = mapOf(1 to Field("object_id"), 2 to Field("children", repeated = true))

    /** @param withContent whether the content is there, and empty. */
    fun message(message: FleetMessage, withContent: Boolean): ProtobufWriter {
        val writer = ProtobufWriter().message(1, metadata(message.metadata))
        if (withContent) writer.bytes(2, ByteArray(0))
        message.error?.let { error ->
            val encoded = ProtobufWriter()
            if (error.code != 0L) encoded.varint(1, zigzag(error.code))
            writer.message(3, encoded.textUnlessEmpty(2, error.reason))
        }
        return writer
    }

    fun tree(tree: ObjectTree): ProtobufWriter {
        val writer = ProtobufWriter().textUnlessEmpty(1, tree.objectId)
        tree.children.forEach { writer.message(2, tree(it)) }
        return writer
    }

    fun node(nodeId: Long): ProtobufWriter = ProtobufWriter().numberUnlessZero(1, nodeId)

    /** @throws WireError malformed. */
    fun readMessage(bytes: ByteBuffer): FleetMessage {
        val fields = read(bytes, MESSAGE, "Message")
        val error = fields["error"]?.let { read(it.bytes, ERROR, "Error") }
        return FleetMessage(
            fields["metadata"]?.let { readMetadata(it.bytes) } ?: Metadata(),
            error?.let { MessageError(unzigzag(it.number("code")), it.text("reason")) },
        )
    }

    /**
     * @param maxNodes bound on the tree's nodes.
     * @throws WireError malformed, larger or deeper than the limits.
     */
    fun readTree(bytes: ByteBuffer, maxNodes: Int): ObjectTree = TreeReader(maxNodes).read(bytes, 0)

    /** A message's fields by name; repeated ones are not for this. @throws WireError malformed. */
    fun read(bytes: ByteBuffer, table: Table, kind: String): Map<String, FieldValue> =
        Protobuf.read(bytes, table, kind, skipUnknown = true).associateBy { it.name }

    private fun readMetadata(bytes: ByteBuffer): Metadata {
        val fields = read(bytes, METADATA, "Metadata")
        return Metadata(
            runId = fields.number("run_id"),
            messageId = fields.text("message_id"),
            sourceNodeId = fields.number("src_node_id"),
            targetNodeId = fields.number("dst_node_id"),
            replyToMessageId = fields.text("reply_to_message_id"),
            groupId = fields.text("group_id"),
            ttl = fields["ttl"]?.bytes?.double ?: 0.0,
            messageType = fields.text("message_type"),
            createdAt = fields["created_at"]?.bytes?.double ?: 0.0,
        )
    }

    private fun metadata(metadata: Metadata): ProtobufWriter = ProtobufWriter()
        .numberUnlessZero(1, metadata.runId)
        .textUnlessEmpty(2, metadata.messageId)
        .numberUnlessZero(3, metadata.sourceNodeId)
        .numberUnlessZero(4, metadata.targetNodeId)
        .textUnlessEmpty(5, metadata.replyToMessageId)
        .textUnlessEmpty(6, metadata.groupId)
        .doubleUnlessZero(7, metadata.ttl)
        .textUnlessEmpty(8, metadata.messageType)
        .doubleUnlessZero(9, metadata.createdAt)

    private class TreeReader(private val maxNodes: Int) {
        private var left = maxNodes

        fun read(bytes: ByteBuffer, depth: Int): ObjectTree {
            if (--left < 0) throw WireError("an object tree of more than $maxNodes nodes")
            if (depth >= MAX_DEPTH) throw WireError("an object tree of more than $MAX_DEPTH levels")
            val fields = Protobuf.read(bytes, TREE, "ObjectTree", skipUnknown = true, maxValues = left + 1)
            val id = fields.firstOrNull { it.name == "object_id" }?.let { Protobuf.text(it, "ObjectTree") }.orEmpty()
            return ObjectTree(id, fields.filter { it.name == "children" }.map { read(it.bytes, depth + 1) })
        }
    }
}

/** proto3: the default value is not written. */
internal fun ProtobufWriter.numberUnlessZero(field: Int, value: Long): ProtobufWriter =
    if (value == 0L) this else varint(field, value)

/** proto3: the default value is not written. */
internal fun ProtobufWriter.textUnlessEmpty(field: Int, value: String): ProtobufWriter =
    if (value.isEmpty()) this else text(field, value)

/** proto3: the default value is not written; -0.0 is none. */
internal fun ProtobufWriter.doubleUnlessZero(field: Int, value: Double): ProtobufWriter =
    if (value.toRawBits() == 0L) this else double(field, value)

/** A number; 0 where it is absent. */
internal fun Map<String, FieldValue>.number(name: String): Long = this[name]?.number ?: 0L

/** A text; empty where it is absent. @throws WireError not UTF-8. */
internal fun Map<String, FieldValue>.text(name: String): String = this[name]?.let { Protobuf.text(it, name) }.orEmpty()
