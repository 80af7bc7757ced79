package org.rootlet.secagg

import org.rootlet.fleet.repr
import org.rootlet.wire.CanonicalJson
import org.rootlet.wire.CanonicalJson.general
import org.rootlet.wire.JsonObject
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError
import org.rootlet.wire.sha256

/**
 * Distributed noise: what each device adds, and what all of it is worth.
 *
 * @property clipNorm C, the Euclidean length to which a device clips its whole update.
 * @property scaleBits b; each device adds a discrete Gaussian of parameter 2^b units.
 * @property unitInverse units in 1.0 of the update, which is scaled by it before it is rounded.
 * @property honest devices whose noise is counted on.
 */
class NoisePlan(val clipNorm: Double, val scaleBits: Long, val unitInverse: Double, val honest: Long) {
    init {
        bounded("clip_norm", clipNorm, 1e-12, 1e12)
        bounded("unit_inverse", unitInverse, 1e-12, 1e12)
        bounded("scale_bits", scaleBits, 2, 24)
        bounded("honest", honest, 1, SecurePlan.MAX_DEVICES)
    }

    /**
     * How long a rounded update of so many values may be, in units (Kairouz et al. 2021, 4.1). With c = C unitInverse:
     *
     *     min(c + sqrt(d), sqrt(c^2 + d/4 + c + sqrt(d)/2))
     */
    fun longest(values: Long): Double {
        val c = clipNorm * unitInverse
        val root = Math.sqrt(values.toDouble())
        return minOf(c + root, Math.sqrt(c * c + values / 4.0 + c + root / 2))
    }

    /** z: the standard deviation of the honest devices' noise over what one device can change. */
    fun noiseMultiplier(values: Long): Double = Math.pow(2.0, scaleBits.toDouble()) * Math.sqrt(honest.toDouble()) / longest(values)
}

/**
 * What all devices of a secure round agree on: one JSON document, by whose hash it is known. Every signature and
 * key of the round is bound to the exact bytes.
 *
 * @property roundId 32 hexadecimal digits, drawn anew for every round and group.
 * @property values d, the numbers in an update.
 * @property valueBits of a device's value, with sign.
 * @property modulusBits of the sum: 16 or 32.
 * @property bound where a device's value saturates, in the update's own units; with noise, after the rotation.
 * @property devices the most that may be on the roster.
 * @property minLive the fewest whose sum may be unmasked.
 * @property degree k of the graph.
 * @property stream the cipher of the masks.
 * @throws SecureRoundRefusedError a value outside its bounds, or a sum that could wrap around.
 */
class SecurePlan private constructor(fields: JsonObject, val raw: ByteArray) {
    private val schema = fields.long("schema")
    val roundId: String = fields.text("round_id")
    private val run = fields.text("run")
    val manifestSha256: String = fields.text("manifest_sha256")
    val values: Long = fields.long("values")
    val valueBits: Long = fields.long("value_bits")
    val modulusBits: Long = fields.long("modulus_bits")
    val bound: Double = fields.double("bound")
    val devices: Long = fields.long("devices")
    val minLive: Long = fields.long("min_live")
    val degree: Long = fields.long("degree")
    val stream: String = fields.text("stream")
    val noise: NoisePlan? = fields.objectOrNull("noise")?.let {
        NoisePlan(it.double("clip_norm"), it.long("scale_bits"), it.double("unit_inverse"), it.long("honest")).also { _ -> it.finish() }
    }

    /** SHA-256 of the document. */
    val digest: ByteArray = sha256(raw)

    /** Units in 1.0 of an update's value. */
    val unitInverse: Double get() = noise?.unitInverse ?: (Whole.largestValue(valueBits.toInt()) / bound)

    /** What the sum's size cannot exceed: n 2^(bits - 1), and room for nine standard deviations of noise. */
    val largestSum: Long
        get() {
            val room = noise?.let { Math.ceil(TAIL * Math.sqrt(devices.toDouble()) * (1L shl it.scaleBits.toInt())).toLong() } ?: 0
            return devices * (Whole.largestValue(valueBits.toInt()) + 1) + room
        }

    init {
        fields.finish()
        if (schema != SCHEMA) refuse("schema $schema: this version speaks $SCHEMA")
        for ((name, value, digits) in listOf(Triple("round_id", roundId, 32), Triple("manifest_sha256", manifestSha256, 64))) {
            if (value.length != digits || !HEX.matches(value)) refuse("$name ${repr(value).take(80)}: $digits hex digits are due")
        }
        bounded("values", values, 1, MAX_VALUES)
        bounded("value_bits", valueBits, 2, 24)
        if (modulusBits != 16L && modulusBits != 32L) refuse("modulus_bits $modulusBits: must be 16 or 32")
        bounded("bound", bound, 1e-12, 1e12)
        bounded("devices", devices, 2, MAX_DEVICES)
        bounded("min_live", minLive, 2, devices)
        bounded("degree", degree, 1, MAX_DEVICES)
        if (stream !in Masks.STREAMS) refuse("stream ${repr(stream).take(40)}: must be one of ${Masks.STREAMS.joinToString()}")
        if (noise != null && noise.honest > minLive) {
            refuse("the noise counts on ${noise.honest} devices, and only $minLive are sure to remain")
        }
        val room = (1L shl (modulusBits.toInt() - 1)) - 1
        if (largestSum > room) {
            refuse(
                "a sum of $devices devices at $valueBits bits${if (noise == null) "" else " and their noise"} reaches " +
                    "$largestSum, and modulus_bits $modulusBits holds $room: lower value_bits, or raise modulus_bits",
            )
        }
        if (!CanonicalJson.document(document()).contentEquals(raw)) refuse("the plan is not in its canonical encoding")
    }

    /** t, for a roster of so many. */
    fun threshold(devices: Int): Int = SharingGraph.thresholdFor(devices, degree.toInt())

    private fun document(): Map<String, Any?> = mapOf(
        "schema" to schema, "round_id" to roundId, "run" to run, "manifest_sha256" to manifestSha256, "values" to values,
        "value_bits" to valueBits, "modulus_bits" to modulusBits, "bound" to bound, "devices" to devices,
        "min_live" to minLive, "degree" to degree, "stream" to stream,
        "noise" to noise?.let {
            mapOf(
                "clip_norm" to it.clipNorm, "scale_bits" to it.scaleBits, "unit_inverse" to it.unitInverse, "honest" to it.honest,
            )
        },
    )

    companion object {
        const val MAX_DEVICES = 65_536L
        private const val SCHEMA = 1L
        private const val MAX_VALUES = 1L shl 28
        private const val MAX_PLAN_BYTES = 16_384
        private const val TAIL = 9
        private val HEX = Regex("[0-9a-f]+")

        /**
         * Reads a plan, in the one encoding that it has.
         *
         * @throws SecureRoundRefusedError it is no plan, or not of this encoding.
         */
        fun parse(raw: ByteArray): SecurePlan {
            if (raw.size > MAX_PLAN_BYTES) refuse("a plan of ${raw.size} bytes; at most $MAX_PLAN_BYTES")
            return try {
                SecurePlan(StrictJson.parseObject(raw), raw)
            } catch (error: StrictJsonError) {
                refuse("not a plan of a secure round: ${error.message}")
            }
        }
    }
}

private fun bounded(name: String, value: Long, low: Long, high: Long) {
    if (value !in low..high) refuse("$name $value: must lie in ${general(low.toDouble())}..${general(high.toDouble())}")
}

private fun bounded(name: String, value: Double, low: Double, high: Double) {
    if (value !in low..high) refuse("$name ${CanonicalJson.repr(value)}: must lie in ${general(low)}..${general(high)}")
}
