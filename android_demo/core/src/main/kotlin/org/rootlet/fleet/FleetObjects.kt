package org.rootlet.fleet

import org.rootlet.wire.sha256
import org.rootlet.wire.toHex

/**
 * What a device is willing to receive in one message.
 *
 * @property objects nodes of the object tree, repetitions counted.
 * @property objectBytes bytes of one object, head included.
 * @property messageBytes bytes of all objects of a message, repetitions counted.
 * @property valuesBytes bytes of its metric and config records, which grow when decoded.
 */
data class Limits(
    val objects: Int = 10_000,
    val objectBytes: Int = FleetObjects.CHUNK_BYTES + 64 * 1024,
    val messageBytes: Long = 256L shl 20,
    val valuesBytes: Int = 1 shl 20,
) {
    init {
        if (objects < 1 || objectBytes < 1 || messageBytes < 1 || valuesBytes < 1) {
            throw ConfigError("$this: each must be at least 1")
        }
    }
}

/** Objects by id, children before parents. */
class ObjectSet {
    private val found = LinkedHashMap<String, ByteArray>()
    private val children = HashMap<String, List<String>>()

    /** Bytes of each object, by id. */
    val contents: Map<String, ByteArray> get() = found

    /** Bytes of all objects. */
    val bytes: Long get() = found.values.sumOf { it.size.toLong() }

    /** Adds an object and returns its id. */
    fun add(kind: String, children: List<String>, body: ByteArray): String {
        val unique = children.distinct()
        val content = "$kind ${unique.joinToString(",")} ${body.size}\u0000".toByteArray(Charsets.US_ASCII) + body
        val id = sha256(content).toHex()
        found[id] = content
        this.children[id] = unique
        return id
    }

    /** The tree below an object of this set. */
    fun tree(id: String): ObjectTree = ObjectTree(id, children.getValue(id).map(::tree))
}

/**
 * Flower's object format: a message as a tree of content-addressed objects.
 *
 * An object is `Type SP child,child SP length NUL body`; its id is the SHA-256 of those bytes, in hex.
 *
 * ```
 * Message ── RecordDict ─┬─ ArrayRecord ── Array ── ArrayChunk (at most 5 MiB of .npy bytes)
 *                        ├─ MetricRecord
 *                        └─ ConfigRecord
 * ```
 *
 * Bodies of RecordDict, ArrayRecord and Array are JSON; of Message, MetricRecord and ConfigRecord
 * protobuf. A repeated part has one object, referred to more than once.
 */
object FleetObjects {
    /** Flower's bound on the `.npy` bytes in one ArrayChunk. */
    const val CHUNK_BYTES = 5 shl 20

    /** Flower's name for arrays that travel as `.npy` bytes. */
    const val STYPE = "numpy.ndarray"
    private val OBJECT_ID = Regex("[0-9a-f]{64}")

    /**
     * The objects of a message, and its id.
     *
     * @param message its `messageId` empty.
     * @param records the content; null where the message reports an error.
     * @throws RecordError a value that cannot travel.
     */
    fun encode(message: FleetMessage, records: Records?): Pair<ObjectSet, String> {
        val objects = ObjectSet()
        val children = ArrayList<String>()
        if (records != null) {
            val ids = records.mapValues { addRecord(objects, it.value) }
            children.add(objects.add("RecordDict", ids.values.toList(), jsonOfTexts(ids)))
        }
        return objects to objects.add("Message", children, Codec.message(message, withContent = false).toByteArray())
    }

    /** Bytes of the objects that carry these records. @throws RecordError a value that cannot travel. */
    fun bytesOf(records: Records): Long = ObjectSet().also { set -> records.values.forEach { addRecord(set, it) } }.bytes

    /**
     * The distinct object ids of a tree, root first.
     *
     * @throws ProtocolError an id that is not a SHA-256, or more nodes than the limit.
     */
    fun treeIds(tree: ObjectTree, limits: Limits = Limits()): List<String> {
        val ids = LinkedHashSet<String>()
        val pending = ArrayDeque(listOf(tree))
        var count = 0
        while (pending.isNotEmpty()) {
            val node = pending.removeLast()
            if (++count > limits.objects) throw ProtocolError("an object tree of more than ${limits.objects} nodes")
            if (!OBJECT_ID.matches(node.objectId)) {
                throw ProtocolError("an object id that is not a SHA-256: '${node.objectId.take(80)}'")
            }
            ids.add(node.objectId)
            pending.addAll(node.children.asReversed())
        }
        return ids.toList()
    }

    /** @throws ProtocolError an object larger than the limit, or one that does not match its id. */
    fun check(id: String, content: ByteArray, limits: Limits = Limits()) {
        if (content.size > limits.objectBytes) {
            throw ProtocolError("object $id has ${content.size} bytes; the limit is ${limits.objectBytes}")
        }
        if (sha256(content).toHex() != id) throw ProtocolError("object $id does not match its hash")
    }

    private fun addRecord(objects: ObjectSet, record: Record): String = when (record) {
        is MetricRecord -> objects.add("MetricRecord", emptyList(), Values.encode(record))
        is ConfigRecord -> objects.add("ConfigRecord", emptyList(), Values.encode(record))
        is ArrayRecord -> {
            val ids = record.arrays.mapValues { addArray(objects, it.value) }
            objects.add("ArrayRecord", ids.values.toList(), jsonOfTexts(ids))
        }
    }

    private fun addArray(objects: ObjectSet, array: NpyArray): String {
        val raw = Npy.write(array)
        val chunks = (raw.indices step CHUNK_BYTES).map {
            objects.add("ArrayChunk", emptyList(), raw.copyOfRange(it, minOf(it + CHUNK_BYTES, raw.size)))
        }
        val unique = chunks.distinct()
        val description = "{\"dtype\": \"${array.dtype.numpy}\", \"shape\": ${array.shape}, \"stype\": \"$STYPE\", " +
            "\"arraychunk_ids\": ${chunks.map(unique::indexOf)}}"
        return objects.add("Array", unique, description.toByteArray(Charsets.US_ASCII))
    }
}

/** JSON in ASCII, with the spaces that Python writes, so that equal records have equal objects. */
private fun jsonOfTexts(texts: Map<String, String>): ByteArray =
    texts.entries.joinToString(", ", "{", "}") { "${quoted(it.key)}: ${quoted(it.value)}" }.toByteArray(Charsets.US_ASCII)

private fun quoted(text: String): String = text.map { char ->
    when (char) {
        '"' -> "\\\""
        '\\' -> "\\\\"
        '\n' -> "\\n"
        '\r' -> "\\r"
        '\t' -> "\\t"
        '\b' -> "\\b"
        '\u000c' -> "\\f"
        in ' '..'~' -> char.toString()
        else -> "\\u%04x".format(char.code)
    }
}.joinToString("", "\"", "\"")
