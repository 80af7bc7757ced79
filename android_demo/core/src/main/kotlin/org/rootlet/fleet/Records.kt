package org.rootlet.fleet

import java.io.ByteArrayOutputStream
import java.math.BigInteger
import java.nio.ByteBuffer
import org.rootlet.wire.Field
import org.rootlet.wire.FieldValue
import org.rootlet.wire.Protobuf
import org.rootlet.wire.ProtobufWriter
import org.rootlet.wire.Table
import org.rootlet.wire.WireError
import org.rootlet.wire.WireType

/** The named values inside a Flower message; the class says how they travel. */
sealed class Record

/** Named arrays, which travel as `.npy` objects. */
class ArrayRecord(val arrays: Map<String, NpyArray>) : Record()

/**
 * Named numbers, or lists of numbers of one type.
 *
 * @property values [Long] (or [BigInteger] from 2^63 to 2^64 - 1), [Double], or a list of one of them.
 */
class MetricRecord(val values: Map<String, Any>) : Record()

/**
 * Named settings.
 *
 * @property values as a [MetricRecord]'s, and [Boolean], [String], [ByteArray], or a list of one of them.
 */
class ConfigRecord(val values: Map<String, Any>) : Record()

/** A message's content: records by name, in the order in which they travel. */
typealias Records = Map<String, Record>

/** Protobuf bodies of metric and config records. */
internal object Values {
    private val UINT64_MAX = BigInteger.ONE.shiftLeft(64) - BigInteger.ONE
    private val ITEMS: Table = mapOf(1 to Field("items", repeated = true))
    private val ITEM: Table = mapOf(1 to Field("key"), 2 to Field("value"))
    private val METRIC: Table = mapOf(
        1 to Field("double", WireType.FIXED64),
        2 to Field("sint64", WireType.VARINT),
        3 to Field("uint64", WireType.VARINT),
        21 to Field("double_list"),
        22 to Field("sint_list"),
        23 to Field("uint_list"),
    )
    private val CONFIG: Table = METRIC + mapOf(
        4 to Field("bool", WireType.VARINT),
        5 to Field("string"),
        6 to Field("bytes"),
        24 to Field("bool_list"),
        25 to Field("string_list"),
        26 to Field("bytes_list"),
    )
    private val LISTS = mapOf(
        "double_list" to "double",
        "sint_list" to "sint64",
        "uint_list" to "uint64",
        "bool_list" to "bool",
        "string_list" to "string",
        "bytes_list" to "bytes",
    )

    /** @throws RecordError a value that a metric record cannot hold. */
    fun encode(record: MetricRecord): ByteArray = encode(record.values, 3, "MetricRecord")

    /** @throws RecordError a value that cannot travel. */
    fun encode(record: ConfigRecord): ByteArray = encode(record.values, 6, "ConfigRecord")

    /** @throws ProtocolError not protobuf, a name twice or a name without a value. */
    fun metrics(body: ByteArray): MetricRecord = MetricRecord(decode(body, METRIC, "MetricRecord"))

    /** @throws ProtocolError not protobuf, a name twice or a name without a value. */
    fun config(body: ByteArray): ConfigRecord = ConfigRecord(decode(body, CONFIG, "ConfigRecord"))

    private fun encode(values: Map<String, Any>, highest: Int, kind: String): ByteArray {
        val body = ProtobufWriter()
        for ((name, value) in values) {
            val items = value as? List<*> ?: listOf(value)
            val field = fieldOf(name, items)
            if (field > highest) throw RecordError("a $kind holds numbers only; '$name' is ${value.toString().take(80)}")
            val encoded = ProtobufWriter()
            if (value is List<*>) encoded.message(20 + field, packed(field, items)) else write(encoded, field, field, value)
            val item = ProtobufWriter()
            if (name.isNotEmpty()) item.text(1, name)
            body.message(1, item.message(2, encoded))
        }
        return body.toByteArray()
    }

    /** The number of the oneof's field; an empty list travels as a list of doubles. */
    private fun fieldOf(name: String, items: List<*>): Int = when {
        items.all { it is Double } -> 1
        items.all { it is Long || it is Int } -> 2
        items.all { it is Long || it is Int || it is BigInteger } &&
            items.all { whole(it!!).signum() >= 0 && whole(it) <= UINT64_MAX } -> 3
        items.all { it is Boolean } -> 4
        items.all { it is String } -> 5
        items.all { it is ByteArray } -> 6
        else -> throw RecordError(
            "value of '$name' cannot travel: ${items.toString().take(80)}; use bool, int in 64 bits, float, str or " +
                "bytes, or a list of one of these types",
        )
    }

    private fun write(to: ProtobufWriter, number: Int, field: Int, value: Any) {
        when (field) {
            1 -> to.double(number, value as Double)
            2 -> to.varint(number, zigzag((value as Number).toLong()))
            3 -> to.varint(number, whole(value).toLong())
            4 -> to.varint(number, if (value as Boolean) 1 else 0)
            5 -> to.text(number, value as String)
            else -> to.bytes(number, value as ByteArray)
        }
    }

    /** `vals` of a list: numbers packed, text and bytes one by one. */
    private fun packed(field: Int, items: List<*>): ProtobufWriter {
        val list = ProtobufWriter()
        if (items.isEmpty()) return list
        if (field >= 5) return list.also { items.forEach { item -> write(it, 1, field, item!!) } }
        val numbers = ByteArrayOutputStream()
        for (item in items) {
            val tagged = ProtobufWriter().also { write(it, 1, field, item!!) }.toByteArray()
            numbers.write(tagged, 1, tagged.size - 1) // packed numbers have no tag, which is one byte here
        }
        return list.bytes(1, numbers.toByteArray())
    }

    private fun decode(body: ByteArray, table: Table, kind: String): Map<String, Any> {
        val values = LinkedHashMap<String, Any>()
        try {
            for (entry in Protobuf.read(ByteBuffer.wrap(body), ITEMS, kind, skipUnknown = true)) {
                val item = Protobuf.read(entry.bytes, ITEM, kind, skipUnknown = true)
                val key = item.firstOrNull { it.name == "key" }?.let { Protobuf.text(it, kind) }.orEmpty()
                val field = item.firstOrNull { it.name == "value" }
                    ?.let { Protobuf.read(it.bytes, table, kind, skipUnknown = true).lastOrNull() }
                if (field == null || key in values) {
                    throw ProtocolError("a $kind holds '${key.take(80)}' without a value, or twice")
                }
                values[key] = value(field, kind)
            }
        } catch (error: WireError) {
            throw ProtocolError("a $kind of ${body.size} bytes is not protobuf: ${error.message}", error)
        }
        return values
    }

    private fun value(field: FieldValue, kind: String): Any = when (field.name) {
        "double" -> field.bytes.double
        "sint64" -> unzigzag(field.number)
        "uint64" -> unsigned(field.number)
        "bool" -> field.number != 0L
        "string" -> Protobuf.text(field, kind, maxBytes = Int.MAX_VALUE)
        "bytes" -> copy(field)
        else -> list(field, kind)
    }

    private fun list(field: FieldValue, kind: String): List<Any> {
        val item = LISTS.getValue(field.name)
        val wireType = when (item) {
            "double" -> WireType.FIXED64
            "string", "bytes" -> WireType.BYTES
            else -> WireType.VARINT
        }
        val found = Protobuf.read(field.bytes, mapOf(1 to Field(item, wireType, repeated = true)), kind, skipUnknown = true)
        if (item != "double") return found.map { value(it, kind) }
        return found.flatMap { packed ->
            val bytes = packed.bytes
            if (bytes.remaining() % 8 != 0) throw WireError("$kind: doubles of ${bytes.remaining()} bytes")
            List(bytes.remaining() / 8) { bytes.double }
        }
    }

    private fun copy(field: FieldValue): ByteArray {
        val bytes = field.bytes
        return ByteArray(bytes.remaining()).also { bytes.get(it) }
    }

    private fun whole(value: Any): BigInteger = value as? BigInteger ?: BigInteger.valueOf((value as Number).toLong())

    private fun unsigned(raw: Long): Any = if (raw >= 0) raw else BigInteger(java.lang.Long.toUnsignedString(raw))
}

internal fun zigzag(value: Long): Long = (value shl 1) xor (value shr 63)

internal fun unzigzag(raw: Long): Long = (raw ushr 1) xor -(raw and 1)
