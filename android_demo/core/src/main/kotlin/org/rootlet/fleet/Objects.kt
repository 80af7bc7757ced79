package org.rootlet.fleet

import java.nio.ByteBuffer
import java.security.MessageDigest
import org.rootlet.wire.JsonObject
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

/** What a device is willing to receive in one message; sizes in bytes, repetitions counted. */
class FleetLimits(
    val objects: Int = 10_000,
    val objectBytes: Int = CHUNK_BYTES + 64 * 1024,
    val messageBytes: Long = 256L shl 20,
    val valuesBytes: Int = 1 shl 20,
) {
    companion object {
        /** Flower's bound on the `.npy` bytes in one ArrayChunk. */
        const val CHUNK_BYTES = 5 shl 20
    }
}

/** Ids of a message's objects, as they refer to each other. */
class ObjectTree(val id: String, val children: List<ObjectTree>) {
    /**
     * The distinct ids, the root first.
     *
     * @throws ProtocolError an id that is no SHA-256, or too many nodes.
     */
    fun ids(limits: FleetLimits): List<String> {
        val found = LinkedHashSet<String>()
        val pending = ArrayDeque(listOf(this))
        var count = 0
        while (pending.isNotEmpty()) {
            val node = pending.removeLast()
            if (++count > limits.objects) throw ProtocolError("an object tree of more than ${limits.objects} nodes")
            if (!ID.matches(node.id)) throw ProtocolError("an object id that is not a SHA-256: '${node.id.take(80)}'")
            found.add(node.id)
            node.children.asReversed().forEach(pending::addLast)
        }
        return found.toList()
    }

    internal fun write(): ProtobufWriter {
        val out = ProtobufWriter().text(1, id)
        children.forEach { out.message(2, it.write()) }
        return out
    }

    private companion object {
        val ID = Regex("[0-9a-f]{64}")
    }
}

/**
 * Flower's object format: a message as a tree of content-addressed objects.
 *
 * An object is `Type SP child,child SP length NUL body`; its id is the SHA-256 of those bytes, in hex.
 * `Message > RecordDict > ArrayRecord > Array > ArrayChunk`; metric and config records are leaves.
 */
internal class ObjectSet {
    /** Bytes of each object, by id. */
    val contents = LinkedHashMap<String, ByteArray>()
    private val children = HashMap<String, List<String>>()

    fun add(kind: String, below: List<String>, body: ByteArray): String {
        val unique = below.distinct()
        val head = "$kind ${unique.joinToString(",")} ${body.size}\u0000".toByteArray(Charsets.US_ASCII)
        val content = head + body
        val id = sha256(content)
        contents[id] = content
        children[id] = unique
        return id
    }

    fun addRecord(record: Record): String = when (record) {
        is Record.Metrics -> add("MetricRecord", emptyList(), Values.encode(record.values))
        is Record.Config -> add("ConfigRecord", emptyList(), Values.encode(record.values))
        is Record.Arrays -> {
            val arrays = record.arrays.mapValues { (_, tensor) ->
                val raw = Npy.write(tensor)
                val chunks = (raw.indices step FleetLimits.CHUNK_BYTES).map {
                    add("ArrayChunk", emptyList(), raw.copyOfRange(it, minOf(raw.size, it + FleetLimits.CHUNK_BYTES)))
                }
                val unique = chunks.distinct()
                val indices = chunks.joinToString(",") { "${unique.indexOf(it)}" }
                val shape = tensor.shape.joinToString(",")
                val about = "{\"dtype\":\"float32\",\"shape\":[$shape],\"stype\":\"$STYPE\",\"arraychunk_ids\":[$indices]}"
                add("Array", unique, about.toByteArray())
            }
            add("ArrayRecord", arrays.values.toList(), references(arrays))
        }
    }

    fun addMessage(body: ByteArray, records: Map<String, Record>?): String {
        val below = records?.let {
            val ids = it.mapValues { (_, record) -> addRecord(record) }
            listOf(add("RecordDict", ids.values.toList(), references(ids)))
        } ?: emptyList()
        return add("Message", below, body)
    }

    fun tree(id: String): ObjectTree = ObjectTree(id, children.getValue(id).map(::tree))

    private fun references(ids: Map<String, String>): ByteArray =
        ids.entries.joinToString(",", "{", "}") { (name, id) -> "${quoted(name)}:\"$id\"" }.toByteArray()

    companion object {
        const val STYPE = "numpy.ndarray"

        fun sha256(content: ByteArray): String =
            MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }

        private fun quoted(name: String): String {
            val escaped = StringBuilder("\"")
            for (letter in name) {
                if (letter < ' ' || letter == '"' || letter == '\\') escaped.append("\\u%04x".format(letter.code)) else escaped.append(letter)
            }
            return escaped.append('"').toString()
        }
    }
}

/**
 * Reads a message's objects, which may be hostile: lengths and children are checked, the tree is five deep by
 * construction, and what is read never exceeds the limits, however often an object is referred to.
 *
 * @param contents every object by id; their hashes were checked when they came.
 */
internal class ObjectReader(private val contents: Map<String, ByteArray>, private val limits: FleetLimits) {
    private var objectsLeft = limits.objects
    private var bytesLeft = limits.messageBytes
    private var valuesLeft = limits.valuesBytes

    private class Parsed(val kind: String, val children: List<String>, val body: ByteArray)

    /** The message's body, and its records; null where it reports an error. */
    fun message(root: String): Pair<ByteArray, Map<String, Record>?> {
        val parsed = read(root, "Message")
        if (parsed.children.isEmpty()) return parsed.body to null
        if (parsed.children.size != 1) throw ProtocolError("message $root has ${parsed.children.size} contents, not one")
        val names = references(read(parsed.children[0], "RecordDict"))
        return parsed.body to names.mapValues { (_, id) -> record(id) }
    }

    private fun record(id: String): Record {
        val parsed = read(id, "ArrayRecord", "MetricRecord", "ConfigRecord")
        if (parsed.kind == "ArrayRecord") return Record.Arrays(references(parsed).mapValues { (_, array) -> array(array) })
        valuesLeft -= parsed.body.size
        if (valuesLeft < 0) throw ProtocolError("the message's values outgrow their limit at $id")
        val values = Values.decode(ByteBuffer.wrap(parsed.body), parsed.kind)
        return if (parsed.kind == "MetricRecord") Record.Metrics(values) else Record.Config(values)
    }

    private fun array(id: String) = read(id, "Array").let { parsed ->
        val about = json(parsed)
        val indices = about.list("arraychunk_ids").map { index ->
            (index as? Long)?.takeIf { it in parsed.children.indices }?.toInt()
                ?: throw ProtocolError("array $id refers to chunks that it does not have")
        }
        val chunks = indices.map { read(parsed.children[it], "ArrayChunk").body }
        val raw = ByteArray(Math.toIntExact(chunks.sumOf { it.size.toLong() }))
        chunks.fold(0) { at, chunk -> chunk.copyInto(raw, at).let { at + chunk.size } }
        val tensor = Npy.read(raw)
        val claimed = listOf(about.text("dtype"), about.list("shape"), about.text("stype"))
        if (claimed != listOf("float32", tensor.shape.toList(), ObjectSet.STYPE)) {
            throw ProtocolError("array $id is described as $claimed and holds float32${tensor.shape.toList()}")
        }
        tensor
    }

    private fun references(parsed: Parsed): Map<String, String> {
        val fields = json(parsed)
        val names = fields.names.associateWith { fields.text(it) }
        if (names.values.toSet() != parsed.children.toSet()) {
            throw ProtocolError("a ${parsed.kind} refers to other objects than its head names")
        }
        return names
    }

    private fun json(parsed: Parsed): JsonObject = try {
        StrictJson.parseObject(parsed.body)
    } catch (error: StrictJsonError) {
        throw ProtocolError("the body of a ${parsed.kind}: ${error.message}", error)
    }

    private fun read(id: String, vararg kinds: String): Parsed {
        val content = contents[id] ?: throw ProtocolError("object ${id.take(64)} is missing from the message")
        objectsLeft--
        bytesLeft -= content.size
        if (objectsLeft < 0 || bytesLeft < 0) throw ProtocolError("the message outgrows its limits at object $id")
        val end = content.indexOf(0)
        val parts = if (end < 0) emptyList() else String(content, 0, end, Charsets.US_ASCII).split(" ")
        if (parts.size != 3 || parts[2] != "${content.size - end - 1}") throw ProtocolError("object $id has a malformed head")
        if (parts[0] !in kinds) throw ProtocolError("object $id is a ${parts[0].take(40)}, not a ${kinds[0]}")
        return Parsed(parts[0], parts[1].split(",").filter { it.isNotEmpty() }, content.copyOfRange(end + 1, content.size))
    }
}
