package org.rootlet.fleet

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.wire.Field
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.Protobuf
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.WireError
import org.rootlet.wire.WireType.FIXED64
import org.rootlet.wire.WireType.VARINT

/** The named values inside a Flower message. */
sealed class Record {
    /** Named float32 arrays, which travel as `.npy` bytes. */
    class Arrays(val arrays: Map<String, FloatTensor>) : Record()

    /** Named numbers: [Long] or [Double]. */
    class Metrics(val values: Map<String, Any>) : Record()

    /** Named settings: [Long], [Double], [Boolean], [String] or [ByteArray]. */
    class Config(val values: Map<String, Any>) : Record()
}

/** Bodies of metric and config records: protobuf, as `flwr.proto` has them. */
internal object Values {
    private val RECORD = mapOf(1 to Field("items", repeated = true))
    private val ITEM = mapOf(1 to Field("key"), 2 to Field("value"))
    private val VALUE = mapOf(
        1 to Field("double", FIXED64), 2 to Field("sint64", VARINT), 3 to Field("uint64", VARINT),
        4 to Field("bool", VARINT), 5 to Field("string"), 6 to Field("bytes"),
    )

    fun encode(values: Map<String, Any>): ByteArray {
        val record = ProtobufWriter()
        for ((name, value) in values) {
            val written = ProtobufWriter()
            when (value) {
                is Double -> written.double(1, value)
                is Long -> written.varint(2, (value shl 1) xor (value shr 63))
                is Boolean -> written.varint(4, if (value) 1 else 0)
                is String -> written.text(5, value)
                is ByteArray -> written.bytes(6, value)
                else -> throw RecordError("value of '$name' cannot travel: $value")
            }
            record.message(1, ProtobufWriter().text(1, name).message(2, written))
        }
        return record.toByteArray()
    }

    /** @throws ProtocolError not protobuf, a name twice, a list, or a name without a value. */
    fun decode(body: ByteBuffer, kind: String): Map<String, Any> {
        val found = LinkedHashMap<String, Any>()
        try {
            for (item in Protobuf.read(body, RECORD, kind)) {
                val fields = Protobuf.read(item.bytes, ITEM, kind).associateBy { it.name }
                val name = fields["key"]?.let { Protobuf.text(it, kind) } ?: ""
                val value = fields["value"]?.let { Protobuf.read(it.bytes, VALUE, "$kind '$name'").singleOrNull() }
                if (value == null || name in found) throw ProtocolError("a $kind holds '$name' without a value, or twice")
                found[name] = when (value.name) {
                    "double" -> value.bytes.getDouble()
                    "sint64" -> (value.number ushr 1) xor -(value.number and 1)
                    "uint64" -> value.number.also { if (it < 0) throw ProtocolError("'$name' is beyond 63 bits") }
                    "bool" -> value.number != 0L
                    "string" -> Protobuf.text(value, kind)
                    else -> ByteArray(value.bytes.remaining()).also { value.bytes.get(it) }
                }
            }
        } catch (error: WireError) {
            throw ProtocolError("a $kind is malformed: ${error.message}", error)
        }
        return found
    }
}

/** Float32 arrays as `.npy` bytes (NumPy's format 1.0), read strictly: the header is literally what NumPy writes. */
internal object Npy {
    private val MAGIC = byteArrayOf(0x93.toByte(), 'N'.code.toByte(), 'U'.code.toByte(), 'M'.code.toByte(), 'P'.code.toByte(), 'Y'.code.toByte(), 1, 0)
    private val HEADER = Regex("\\{'descr': '<f4', 'fortran_order': (False|True), 'shape': \\(((?:\\d{1,18}(?:, ?)?)*)\\), \\} *\\n")
    private const val MAX_HEADER_BYTES = 4096

    fun write(tensor: FloatTensor): ByteArray {
        val shape = tensor.shape.joinToString(", ") + if (tensor.shape.size == 1) "," else ""
        val text = "{'descr': '<f4', 'fortran_order': False, 'shape': ($shape), }"
        val unpadded = MAGIC.size + 2 + text.length + 1
        val header = text + " ".repeat(Math.floorMod(-unpadded, 64)) + "\n"
        val out = ByteBuffer.allocate(MAGIC.size + 2 + header.length + 4 * tensor.values.size).order(ByteOrder.LITTLE_ENDIAN)
        out.put(MAGIC).putShort(header.length.toShort()).put(header.toByteArray(Charsets.US_ASCII))
        for (value in tensor.values) out.putFloat(value)
        return out.array()
    }

    /** @throws ProtocolError another type, a malformed header, or a shape that does not account for every byte. */
    fun read(content: ByteArray): FloatTensor {
        val rest = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
        if (content.size < MAGIC.size + 2 || !content.copyOf(MAGIC.size).contentEquals(MAGIC)) {
            throw ProtocolError("an array that does not begin like a .npy file of version 1.0")
        }
        rest.position(MAGIC.size)
        val length = rest.getShort().toInt() and 0xffff
        if (length > minOf(MAX_HEADER_BYTES, rest.remaining())) throw ProtocolError("a .npy header of $length bytes")
        val header = String(ByteArray(length).also { rest.get(it) }, Charsets.ISO_8859_1)
        val match = HEADER.matchEntire(header) ?: throw ProtocolError("an array that is not float32: ${header.take(120)}")
        val sizes = match.groupValues[2].split(Regex("[, ]+")).filter { it.isNotEmpty() }.map { it.toLong() }
        val elements = try {
            sizes.fold(1L, Math::multiplyExact)
        } catch (_: ArithmeticException) {
            -1L
        }
        if (sizes.size > 32 || elements * Float.SIZE_BYTES != rest.remaining().toLong()) {
            throw ProtocolError("an array of shape $sizes with ${rest.remaining()} bytes of data")
        }
        if (match.groupValues[1] == "True" && sizes.count { it > 1 } > 1) {
            throw ProtocolError("an array in Fortran's order; rootlet servers send C's")
        }
        return FloatTensor(sizes.toLongArray(), FloatArray(elements.toInt()).also { rest.asFloatBuffer().get(it) })
    }
}
