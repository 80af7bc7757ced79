package org.rootlet.wire

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A float32 tensor in row-major order. */
class FloatTensor(val shape: LongArray, val values: FloatArray) {
    init {
        require(shape.fold(1L, Math::multiplyExact) == values.size.toLong()) {
            "shape ${shape.toList()} and ${values.size} values"
        }
    }
}

/**
 * The safetensors format: 8 bytes with the header's length, a JSON header, the tensors' bytes without a
 * gap. Float32 alone is read and written here; it is what an adapter consists of.
 */
object SafeTensors {
    private const val LENGTH_BYTES = 8
    private const val METADATA = "__metadata__"

    /** The largest header that is read, in bytes. */
    const val MAX_HEADER_BYTES = 1 shl 20

    /**
     * The tensors by name, in the order in which they lie in the file.
     *
     * @throws WireError not safetensors, another data type, or bytes that overlap, are missing or left over.
     */
    fun read(content: ByteBuffer): Map<String, FloatTensor> {
        val (header, data) = parts(content)
        val entries = header.names.filter { it != METADATA }.map { entry(it, header) }.sortedBy { it.begin }
        val found = LinkedHashMap<String, FloatTensor>()
        var expected = 0L
        for (entry in entries) {
            if (entry.begin != expected) throw WireError("${entry.name}: begins at ${entry.begin}, not at $expected")
            expected = entry.end
            if (expected > data.remaining()) throw WireError("${entry.name}: ends beyond the file")
            val values = FloatArray(((entry.end - entry.begin) / Float.SIZE_BYTES).toInt())
            val view = data.duplicate().order(ByteOrder.LITTLE_ENDIAN)
            view.position(data.position() + entry.begin.toInt())
            view.asFloatBuffer().get(values)
            found[entry.name] = FloatTensor(entry.shape, values)
        }
        if (expected != data.remaining().toLong()) throw WireError("${data.remaining() - expected} bytes belong to no tensor")
        return found
    }

    /**
     * The text that the header carries beside the tensors.
     *
     * @throws WireError not safetensors.
     */
    fun metadata(content: ByteBuffer): Map<String, String> = strict {
        val header = parts(content).first
        if (METADATA !in header.names) return@strict emptyMap()
        val metadata = header.objectAt(METADATA)
        metadata.names.associateWith { metadata.text(it) }
    }

    /** The file with these tensors in this order; names and metadata of letters, digits and `._/-|`. */
    fun write(tensors: Map<String, FloatTensor>, metadata: Map<String, String> = emptyMap()): ByteArray {
        val header = StringBuilder("{")
        if (metadata.isNotEmpty()) {
            header.append(metadata.entries.joinToString(",", "\"$METADATA\":{", "},") { "${quoted(it.key)}:${quoted(it.value)}" })
        }
        var offset = 0L
        header.append(
            tensors.entries.joinToString(",") { (name, tensor) ->
                val begin = offset
                offset += Float.SIZE_BYTES.toLong() * tensor.values.size
                "${quoted(name)}:{\"dtype\":\"F32\",\"shape\":[${tensor.shape.joinToString(",")}],\"data_offsets\":[$begin,$offset]}"
            },
        ).append('}')
        while (header.length % LENGTH_BYTES != 0) header.append(' ')
        val encoded = header.toString().toByteArray(Charsets.UTF_8)
        val out = ByteBuffer.allocate(LENGTH_BYTES + encoded.size + Math.toIntExact(offset)).order(ByteOrder.LITTLE_ENDIAN)
        out.putLong(encoded.size.toLong()).put(encoded)
        for (tensor in tensors.values) for (value in tensor.values) out.putFloat(value)
        return out.array()
    }

    private fun parts(content: ByteBuffer): Pair<JsonObject, ByteBuffer> {
        val rest = content.duplicate().order(ByteOrder.LITTLE_ENDIAN)
        if (rest.remaining() < LENGTH_BYTES) throw WireError("${rest.remaining()} bytes; too short for safetensors")
        val length = rest.getLong()
        if (length !in 2..minOf(MAX_HEADER_BYTES.toLong(), rest.remaining().toLong())) {
            throw WireError("a header of ${java.lang.Long.toUnsignedString(length)} bytes in ${rest.remaining()}")
        }
        val header = ByteArray(length.toInt())
        rest.get(header)
        return strict { StrictJson.parseObject(header) } to rest.slice()
    }

    private fun entry(name: String, header: JsonObject): Entry = strict {
        val fields = header.objectAt(name)
        val dtype = fields.text("dtype")
        if (dtype != "F32") throw WireError("$name: data type $dtype; F32 is due")
        val shape = longs(name, fields.list("shape"))
        val offsets = longs(name, fields.list("data_offsets"))
        fields.finish()
        val elements = try {
            shape.fold(1L, Math::multiplyExact)
        } catch (_: ArithmeticException) {
            -1L
        }
        if (offsets.size != 2 || elements < 0 || elements > Int.MAX_VALUE || offsets[1] - offsets[0] != elements * Float.SIZE_BYTES) {
            throw WireError("$name: shape ${shape.toList()} and offsets ${offsets.toList()} do not fit")
        }
        Entry(name, shape, offsets[0], offsets[1])
    }

    private fun longs(name: String, items: List<Any?>): LongArray = LongArray(items.size) {
        val item = items[it]
        if (item !is Long || item < 0) throw WireError("$name: $item is no size")
        item
    }

    private fun <T> strict(read: () -> T): T = try {
        read()
    } catch (error: StrictJsonError) {
        throw WireError("the header: ${error.message}")
    }

    private fun quoted(text: String): String {
        require(PLAIN.matches(text)) { "'$text' is not of letters, digits and ._/-|" }
        return "\"$text\""
    }

    private class Entry(val name: String, val shape: LongArray, val begin: Long, val end: Long)

    private val PLAIN = Regex("[A-Za-z0-9._/|-]*")
}
