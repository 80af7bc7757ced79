package org.rootlet.fleet

import org.rootlet.privacy.PrivacySpent

/**
 * A message that the server announced to this node: its metadata and the tree of its objects.
 */
class Envelope(val metadata: Metadata, val tree: ObjectTree) {
    /** When the server stops waiting for a reply, in seconds since the epoch (server's time). */
    val expiresAt: Double get() = metadata.createdAt + metadata.ttl

    /** @throws ProtocolError the envelope is for another node, or its tree beyond the limits. */
    fun check(nodeId: Long, limits: Limits) {
        if (metadata.targetNodeId != nodeId) {
            throw ProtocolError("a message for node ${unsigned(metadata.targetNodeId)} was handed to node ${unsigned(nodeId)}")
        }
        if (FleetObjects.treeIds(tree, limits)[0] != metadata.messageId) {
            throw ProtocolError("message ${metadata.messageId.take(64)} has the objects of another one")
        }
    }

    /**
     * The request in this envelope.
     *
     * @param contents its objects, by id.
     * @throws ProtocolError malformed objects, beyond the limits, or an error where a request belongs.
     */
    fun open(contents: Map<String, ByteArray>, limits: Limits = Limits()): FleetRequest {
        val (message, records) = FleetDecoder(contents, limits).message(metadata.messageId)
        if (records == null) throw ProtocolError("message ${metadata.messageId} is an error, not a request")
        if (message.metadata.runId != metadata.runId) {
            throw ProtocolError("message ${metadata.messageId} belongs to another run than announced")
        }
        val bytes = contents.values.sumOf { it.size.toLong() }
        return FleetRequest(metadata.runId, message.metadata.groupId, message.metadata.messageType, records, bytes)
    }

    /**
     * The reply to this envelope; it expires when the request does: `ttl = expiresAt - now`.
     *
     * @param now the server's time, in seconds since the epoch.
     * @throws RecordError a value that cannot travel.
     */
    fun seal(answer: Answer, now: Double): SealedReply {
        val reply = Metadata(
            runId = metadata.runId,
            sourceNodeId = metadata.targetNodeId,
            targetNodeId = metadata.sourceNodeId,
            replyToMessageId = metadata.messageId,
            groupId = metadata.groupId,
            ttl = expiresAt - now,
            messageType = metadata.messageType,
            createdAt = now,
        )
        val failed = answer.error.isNotEmpty()
        val message = FleetMessage(reply, if (failed) MessageError(answer.code, answer.error) else null)
        val (objects, id) = FleetObjects.encode(message, if (failed) null else answer.records)
        val sent = message.copy(metadata = reply.copy(messageId = id))
        return SealedReply(sent, objects.tree(id), objects.contents)
    }
}

/**
 * What the server asks of this device.
 *
 * @property groupId the round, in Flower's counting.
 * @property messageType `train`, `evaluate` or `query`, possibly with `.<action>`.
 * @property bytes of its objects.
 */
class FleetRequest(
    val runId: Long,
    val groupId: String,
    val messageType: String,
    val records: Records,
    val bytes: Long,
)

/**
 * What is answered: records, or the reason why there are none.
 *
 * @property error what went wrong, for the server's log; empty for nothing.
 * @property code Flower's or rootlet's error code; 0 where there is no error.
 * @property spent what the answer spends of the device's privacy; null for nothing that is bounded.
 */
class Answer(val records: Records, val error: String = "", val code: Long = 0, val spent: PrivacySpent? = null)

/** A reply in objects: Flower's Message without content, its tree, and the objects' bytes by id. */
class SealedReply(val message: FleetMessage, val tree: ObjectTree, val contents: Map<String, ByteArray>) {
    val runId: Long get() = message.metadata.runId
    val messageId: String get() = message.metadata.messageId
}

/** An id as the server prints it. */
internal fun unsigned(id: Long): String = java.lang.Long.toUnsignedString(id)
