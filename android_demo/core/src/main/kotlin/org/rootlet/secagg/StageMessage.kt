package org.rootlet.secagg

import org.rootlet.fleet.ConfigRecord
import org.rootlet.fleet.RecordError
import org.rootlet.fleet.Records
import org.rootlet.fleet.repr

/**
 * One stage's request or reply: the record `secure` with `protocol` 1, `stage` and, but for the first, `round_id`
 * (`docs/architecture.md`, contract 3). Sets by place are two lists of one length: `places` and the values.
 *
 * @property roundId 32 hexadecimal digits; empty in the first request, whose plan has it.
 * @property values the rest, by name.
 */
internal class StageMessage(val stage: String, val roundId: String, val values: Map<String, Any>) {
    fun bytes(name: String): ByteArray = values.getValue(name) as ByteArray

    /**
     * A set by place.
     *
     * @throws RecordError the lists differ in length, or a place is there twice.
     */
    fun byPlace(name: String): Map<Int, ByteArray> {
        val places = (values.getValue("places") as List<*>).map { (it as Long).toInt() }
        val items = (values.getValue(name) as List<*>).map { it as ByteArray }
        val found = places.zip(items).toMap()
        if (places.size != items.size || found.size != places.size) {
            throw RecordError("$stage: ${places.size} places and ${items.size} $name; one each is due")
        }
        return found
    }

    /** The content of the message. */
    fun toRecord(): ConfigRecord =
        ConfigRecord(mapOf<String, Any>("protocol" to PROTOCOL, "stage" to stage, "round_id" to roundId) + values)

    companion object {
        const val SECURE = "secure"
        private const val PROTOCOL = 1L
        private const val MAX_ITEMS = 65_536
        private val REQUESTS = mapOf(
            "advertise" to mapOf("plan" to "bytes"),
            "share" to mapOf("roster" to "bytes", "places" to "list", "advertisements" to "list"),
            "upload" to mapOf("places" to "list", "shares" to "list"),
            "confirm" to mapOf("live" to "bytes"),
            "unmask" to mapOf("live" to "bytes", "places" to "list", "signatures" to "list"),
        )

        /** Two lists of a set by place, in the order of the places. */
        fun byPlace(name: String, items: Map<Int, Any>): Map<String, Any> {
            val places = items.keys.sorted()
            return mapOf("places" to places.map { it.toLong() }, name to places.map { items.getValue(it) })
        }

        /**
         * The stage that a message asks for.
         *
         * @throws RecordError anything missing, unknown, of the wrong type or out of bounds.
         */
        fun request(records: Records): StageMessage {
            val record = (records[SECURE] as? ConfigRecord)?.values.orEmpty()
            if (record["protocol"] != PROTOCOL) {
                throw RecordError("not a message of secure aggregation $PROTOCOL: install the same rootlet version on both sides")
            }
            val stage = record["stage"]
            val roundId = record["round_id"]
            val expected = REQUESTS[stage]
            if (stage !is String || roundId !is String || expected == null) {
                throw RecordError("stage ${repr(stage).take(40)}, round_id ${repr(roundId).take(40)}: must be a stage's")
            }
            val values = record - setOf("protocol", "stage", "round_id")
            if (values.keys != expected.keys) {
                throw RecordError("$stage has ${repr(values.keys.sorted()).take(200)}; expected ${repr(expected.keys.sorted())}")
            }
            for ((name, kind) in expected) check(stage, name, kind, values.getValue(name))
            return StageMessage(stage, roundId, values)
        }

        private fun check(stage: String, name: String, kind: String, value: Any) {
            if (kind == "bytes") {
                if (value !is ByteArray) throw RecordError("$stage: $name is not of type bytes")
                return
            }
            if (value !is List<*>) throw RecordError("$stage: $name is not of type list")
            val wholes = name == "places"
            if (value.size > MAX_ITEMS || value.any { if (wholes) it !is Long else it !is ByteArray }) {
                throw RecordError("$stage: $name must be at most $MAX_ITEMS of ${if (wholes) "int" else "bytes"}")
            }
            if (wholes && value.any { it as Long !in 0 until MAX_ITEMS }) throw RecordError("$stage: a place lies in 0..${MAX_ITEMS - 1}")
        }
    }
}
