package org.rootlet.wire

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/** The bytes are not a message of the expected kind. */
class WireError(message: String) : Exception(message)

/** Protobuf's wire types. */
object WireType {
    const val VARINT = 0
    const val FIXED64 = 1
    const val BYTES = 2
    const val FIXED32 = 5
}

/** What a message may hold under one number. */
class Field(val name: String, val wireType: Int = WireType.BYTES, val repeated: Boolean = false)

/** The fields of a message, by number. */
typealias Table = Map<Int, Field>

/** One value of a message: a varint, or the bytes of anything else. */
class FieldValue(val name: String, val number: Long, private val span: ByteBuffer?) {
    /** A view of the value's bytes; empty for a varint. */
    val bytes: ByteBuffer get() = span?.duplicate()?.order(ByteOrder.LITTLE_ENDIAN) ?: ByteBuffer.allocate(0)

    val isBytes: Boolean get() = span != null
}

/**
 * A bounded reader of protobuf's wire format, for messages that are not trusted yet.
 *
 * Each message is read against a table of its fields: a field that is not in the table, has another
 * wire type, or repeats where it may not, is refused, so that two parsers cannot disagree about what
 * the bytes say. Nothing here recurses.
 */
object Protobuf {
    /**
     * The values of a message in order; packed integers one by one.
     *
     * @param skipUnknown for replies of a newer server: fields that are not in the table are passed
     * over instead of refused.
     * @param maxValues values that may be found, so that two bytes each cannot become a heap of objects.
     * @throws WireError truncated, malformed, or holding what the table does not allow.
     */
    fun read(
        message: ByteBuffer,
        table: Table,
        kind: String,
        skipUnknown: Boolean = false,
        maxValues: Int = Int.MAX_VALUE,
    ): List<FieldValue> {
        val rest = message.duplicate().order(ByteOrder.LITTLE_ENDIAN)
        val found = ArrayList<FieldValue>()
        val seen = HashSet<String>()
        while (rest.hasRemaining()) {
            if (found.size >= maxValues) throw WireError("$kind: more than $maxValues values")
            val tag = varint(rest)
            val wireType = (tag and 7).toInt()
            val field = if (tag ushr 32 == 0L) table[(tag ushr 3).toInt()] else null
            if (field == null) {
                if (!skipUnknown) throw WireError("$kind: field ${tag ushr 3} is not allowed")
                value(rest, wireType, "", kind)
                continue
            }
            if (!seen.add(field.name) && !field.repeated) throw WireError("$kind: ${field.name} appears twice")
            if (wireType == WireType.BYTES && field.wireType == WireType.VARINT && field.repeated) {
                val packed = value(rest, wireType, field.name, kind).bytes
                while (packed.hasRemaining() && found.size <= maxValues) found.add(FieldValue(field.name, varint(packed), null))
                continue
            }
            if (wireType != field.wireType && !(wireType == WireType.BYTES && field.repeated)) {
                throw WireError("$kind: ${field.name} has wire type $wireType")
            }
            found.add(value(rest, wireType, field.name, kind))
        }
        if (found.size > maxValues) throw WireError("$kind: more than $maxValues values")
        return found
    }

    /**
     * A string field as text.
     *
     * @throws WireError not UTF-8, or longer than [maxBytes].
     */
    fun text(value: FieldValue, kind: String, maxBytes: Int = 65536): String {
        if (!value.isBytes || value.bytes.remaining() > maxBytes) {
            throw WireError("$kind: not a string of at most $maxBytes bytes")
        }
        return try {
            Charsets.UTF_8.newDecoder()
                .onMalformedInput(CodingErrorAction.REPORT)
                .onUnmappableCharacter(CodingErrorAction.REPORT)
                .decode(value.bytes).toString()
        } catch (_: CharacterCodingException) {
            throw WireError("$kind: not UTF-8")
        }
    }

    private fun value(rest: ByteBuffer, wireType: Int, name: String, kind: String): FieldValue {
        if (wireType == WireType.VARINT) return FieldValue(name, varint(rest), null)
        val length = when (wireType) {
            WireType.BYTES -> varint(rest)
            WireType.FIXED64 -> 8
            WireType.FIXED32 -> 4
            else -> throw WireError("$kind: wire type $wireType")
        }
        if (length < 0 || length > rest.remaining()) {
            throw WireError("$kind: a field of ${java.lang.Long.toUnsignedString(length)} bytes in ${rest.remaining()}")
        }
        val span = rest.duplicate()
        val end = rest.position() + length.toInt()
        span.limit(end)
        rest.position(end)
        return FieldValue(name, 0, span.slice())
    }

    private fun varint(rest: ByteBuffer): Long {
        var result = 0L
        for (index in 0 until 10) {
            if (!rest.hasRemaining()) throw WireError("truncated in the middle of a number")
            val byte = rest.get().toInt() and 0xff
            if (index == 9 && byte > 1) break
            result = result or ((byte and 0x7f).toLong() shl (7 * index))
            if (byte < 0x80) return result
        }
        throw WireError("a number of more than 64 bits")
    }
}

/** Writes protobuf's wire format; fields in the order in which they are given. */
class ProtobufWriter {
    private val out = ByteArrayOutputStream()

    fun varint(field: Int, value: Long): ProtobufWriter = apply {
        tag(field, WireType.VARINT)
        number(value)
    }

    fun bytes(field: Int, value: ByteArray): ProtobufWriter = apply {
        tag(field, WireType.BYTES)
        number(value.size.toLong())
        out.write(value, 0, value.size)
    }

    fun text(field: Int, value: String): ProtobufWriter = bytes(field, value.toByteArray(Charsets.UTF_8))

    fun message(field: Int, value: ProtobufWriter): ProtobufWriter = bytes(field, value.toByteArray())

    fun double(field: Int, value: Double): ProtobufWriter = apply {
        tag(field, WireType.FIXED64)
        val raw = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putDouble(value).array()
        out.write(raw, 0, raw.size)
    }

    fun toByteArray(): ByteArray = out.toByteArray()

    private fun tag(field: Int, wireType: Int) = number((field.toLong() shl 3) or wireType.toLong())

    private fun number(value: Long) {
        var rest = value
        while (rest and 0x7f.inv() != 0L) {
            out.write((rest and 0x7f or 0x80).toInt())
            rest = rest ushr 7
        }
        out.write(rest.toInt())
    }
}
