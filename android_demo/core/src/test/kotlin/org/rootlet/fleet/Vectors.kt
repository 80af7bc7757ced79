package org.rootlet.fleet

import java.io.File
import org.rootlet.wire.StrictJson

/** What Python says on the Fleet API: `tests/vectors/fleet.json`. */
object Vectors {
    private val all: Map<*, *> by lazy {
        val repository = File(System.getProperty("rootlet.repository"))
        StrictJson.parse(File(repository, "tests/vectors/fleet.json").readBytes()) as Map<*, *>
    }

    fun map(name: String): Map<String, Any?> = asMap(all[name])

    fun list(name: String): List<Map<String, Any?>> = (all[name] as List<*>).map(::asMap)

    fun text(name: String): String = all[name] as String

    /** A hexadecimal entry. */
    fun bytes(name: String): ByteArray = fromHex(text(name))

    fun asMap(value: Any?): Map<String, Any?> = (value as Map<*, *>).entries.associate { it.key as String to it.value }

    fun fromHex(text: Any?): ByteArray = (text as String).chunked(2).map { it.toInt(16).toByte() }.toByteArray()

    fun toHex(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }

    /** Values of a record; `{"hex": …}` stands for bytes. */
    fun values(entries: Map<String, Any?>): Map<String, Any> = entries.mapValues { value(it.value) }

    private fun value(value: Any?): Any = when (value) {
        is Map<*, *> -> fromHex(value["hex"])
        is List<*> -> value.map(::value)
        else -> value!!
    }

    /** The adapter of the vectors. */
    fun adapter(): Adapter = mapOf(
        "layer.a" to NpyArray.of(listOf(2, 3), FloatArray(6) { it / 4f }),
        "b\"ias\\é" to NpyArray.of(listOf(1), floatArrayOf(1e-8f)),
    )

    /** The records of the message in the vectors. */
    fun records(): Records = mapOf(
        "arrays" to ArrayRecord(adapter() + mapOf("same" to adapter().getValue("layer.a"))),
        "config" to ConfigRecord(values(asMap(map("config")["values"]))),
        "metrics" to MetricRecord(values(asMap(map("metrics")["values"]))),
    )

    fun objects(): Map<String, ByteArray> = map("objects").mapValues { fromHex(it.value) }
}
