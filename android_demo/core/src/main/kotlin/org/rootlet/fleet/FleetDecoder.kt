package org.rootlet.fleet

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError
import org.rootlet.wire.WireError

/**
 * One reading of a message's objects, which may be hostile.
 *
 * Every object's declared length and children are checked (its hash by [FleetObjects.check]); the tree
 * is five deep by construction, so cycles cannot be followed; what is read never exceeds the limits,
 * however often an object is referred to; nothing is unpickled or loaded by name.
 *
 * @param contents every object of the message, by id.
 */
class FleetDecoder(private val contents: Map<String, ByteArray>, limits: Limits = Limits()) {
    private class Parsed(val kind: String, val children: List<String>, val body: ByteArray)

    private var objectsLeft = limits.objects
    private var bytesLeft = limits.messageBytes
    private var valuesLeft = limits.valuesBytes

    /**
     * The message with this id and its records; no records where it reports an error.
     *
     * @throws ProtocolError anything malformed or beyond the limits.
     */
    fun message(root: String): Pair<FleetMessage, Records?> {
        val parsed = read(root, "Message")
        val message = try {
            Codec.readMessage(ByteBuffer.wrap(parsed.body))
        } catch (error: WireError) {
            throw ProtocolError("message $root is not protobuf: ${error.message}", error)
        }
        if (message.error != null) return message to null
        if (parsed.children.size != 1) {
            throw ProtocolError("message $root has ${parsed.children.size} contents, not one")
        }
        return message to references(read(parsed.children[0], "RecordDict")).mapValues { record(it.value) }
    }

    private fun record(id: String): Record {
        val parsed = read(id, "ArrayRecord", "MetricRecord", "ConfigRecord")
        if (parsed.kind == "ArrayRecord") return ArrayRecord(references(parsed).mapValues { array(it.value) })
        valuesLeft -= parsed.body.size
        if (valuesLeft < 0) throw ProtocolError("the message's values outgrow their limit at $id")
        return if (parsed.kind == "MetricRecord") Values.metrics(parsed.body) else Values.config(parsed.body)
    }

    private fun array(id: String): NpyArray {
        val parsed = read(id, "Array")
        val description = json(parsed)
        val indices = description["arraychunk_ids"] as? List<*>
        val raw = ByteArrayOutputStream()
        for (index in indices ?: listOf(null)) {
            if (index !is Long || index !in parsed.children.indices.let { it.first.toLong()..it.last.toLong() }) {
                throw ProtocolError("array $id refers to chunks that it does not have")
            }
            read(parsed.children[index.toInt()], "ArrayChunk").body.let { raw.write(it, 0, it.size) }
        }
        val array = Npy.read(raw.toByteArray())
        val claimed = listOf(description["dtype"], description["shape"], description["stype"])
        if (claimed != listOf(array.dtype.numpy, array.shape.map { it.toLong() }, FleetObjects.STYPE)) {
            throw ProtocolError("array $id is described as ${claimed.toString().take(120)} and holds $array")
        }
        return array
    }

    private fun references(parsed: Parsed): Map<String, String> {
        val names = json(parsed).mapValues {
            it.value as? String ?: throw ProtocolError("a ${parsed.kind} refers to something other than objects")
        }
        if (names.values.toSet() != parsed.children.toSet()) {
            throw ProtocolError("a ${parsed.kind} refers to other objects than its head names")
        }
        return names
    }

    private fun read(id: String, vararg kinds: String): Parsed {
        val content = contents[id] ?: throw ProtocolError("object ${id.take(64)} is missing from the message")
        objectsLeft -= 1
        bytesLeft -= content.size
        if (objectsLeft < 0 || bytesLeft < 0) throw ProtocolError("the message outgrows its limits at object $id")
        val divider = content.indexOf(0)
        val parts = if (divider < 0) emptyList() else String(content, 0, divider, Charsets.US_ASCII).split(" ")
        val body = content.copyOfRange(divider + 1, content.size)
        if (parts.size != 3 || parts[2] != "${body.size}") throw ProtocolError("object $id has a malformed head")
        if (parts[0] !in kinds) throw ProtocolError("object $id is a ${parts[0].take(40)}, not a ${kinds[0]}")
        return Parsed(parts[0], parts[1].split(",").filter { it.isNotEmpty() }, body)
    }

    private fun json(parsed: Parsed): Map<String, Any?> {
        val value = try {
            StrictJson.parse(parsed.body)
        } catch (error: StrictJsonError) {
            throw ProtocolError("the body of a ${parsed.kind} is not JSON: ${error.message}", error)
        }
        val names = value as? Map<*, *> ?: throw ProtocolError("the body of a ${parsed.kind} is not a JSON object")
        return names.entries.associate { (name, item) -> name as String to item }
    }
}
