package org.rootlet.fleet

import org.rootlet.secagg.SecureUpdate

/**
 * Differential privacy by device, as a server asks for it: the device clips its whole update and answers with the
 * adapter alone; the noise is the server's, who is trusted with it. (Noise of the devices comes with secure rounds.)
 *
 * @property maxNorm C, of the device's whole update.
 * @property noiseMultiplier the noise's standard deviation over the sensitivity.
 */
internal class PrivacyTerms private constructor(val maxNorm: Double, val noiseMultiplier: Double) {
    /** The received adapter and `(trained - received) min(1, C / ||trained - received||)`. */
    fun clippedAnswer(trained: Adapter, received: Adapter): Answer {
        val step = SecureUpdate.clipped(SecureUpdate.difference(trained, received), maxNorm)
        var at = 0
        val adapter = received.keys.sorted().associateWith { name ->
            val array = received.getValue(name)
            NpyArray.of(array.shape, array.floats().map { (it + step[at++]).toFloat() }.toFloatArray())
        }
        val size = adapter.values.sumOf { it.data.size.toLong() }
        val ordered = received.keys.associateWith { adapter.getValue(it) }
        return Answer(mapOf("arrays" to ArrayRecord(ordered), "metrics" to MetricRecord(mapOf("bytes_up" to size))))
    }

    companion object {
        const val PRIVACY = "privacy"
        private val NAMES = setOf("unit", "max_norm", "noise_multiplier", "sample_rate")
        private val BOUNDS = mapOf("max_norm" to 1e-6..1e6, "noise_multiplier" to 0.01..1e4, "sample_rate" to 1e-9..1.0)

        /**
         * The terms of a request; null where there are none.
         *
         * @throws RecordError malformed, or out of bounds.
         * @throws RequestRefusedError privacy by example: DP-SGD is not in this library.
         */
        fun of(records: Records): PrivacyTerms? {
            if (PRIVACY !in records) return null
            val values = (records.getValue(PRIVACY) as? ConfigRecord)?.values.orEmpty()
            if (values.keys != NAMES) throw RecordError("$PRIVACY is ${repr(values.keys.sorted())}; it must be ${NAMES.joinToString()}")
            for ((name, bounds) in BOUNDS) {
                val value = values[name] as? Double ?: throw RecordError("$name is ${repr(values[name])}; it must be of type float")
                if (value !in bounds) throw RecordError("$name is $value; it must be ${bounds.start} to ${bounds.endInclusive}")
            }
            return when (values["unit"]) {
                "device" -> PrivacyTerms(values["max_norm"] as Double, values["noise_multiplier"] as Double)
                "example" -> throw RequestRefusedError(
                    "the request asks for privacy by example (DP-SGD), which this device does not train by: ask for privacy by device",
                )
                else -> throw RecordError("unit is ${repr(values["unit"]).take(40)}; it must be one of example, device")
            }
        }
    }
}
