package org.rootlet.fleet

import org.rootlet.bundle.Bundle
import org.rootlet.wire.FloatTensor

/** What rootlet says inside a Flower message (`docs/architecture.md`, contract 3), in its plain rounds. */
internal object RoundProtocol {
    const val TRAIN = "train"
    const val EVALUATE = "evaluate"
    const val ERROR_REFUSED = 1001
    const val ERROR_FAILED = 1002
    const val ERROR_MALFORMED = 1003
    private const val VERSION = 1L
    private val BUNDLE_KEYS = setOf("protocol", "bundle", "bundle_version", "manifest_sha256", "round")
    private val TRAIN_KEYS = BUNDLE_KEYS + setOf("epochs", "batch_size", "learning_rate")

    class Asked(val adapter: Map<String, FloatTensor>, val epochs: Int, val batchSize: Int, val learningRate: Double)

    /**
     * The request in a message.
     *
     * @throws RecordError anything missing, of the wrong type or out of bounds.
     * @throws RequestRefusedError another bundle, or a kind of round that this library does not take part in.
     */
    fun read(bundle: Bundle, request: FleetRequest): Asked {
        val trains = request.messageType == TRAIN
        val adapter = request.records["arrays"] as? Record.Arrays
        val config = request.records["config"] as? Record.Config
        if (adapter == null || config == null) throw RecordError("records: ${request.records.keys}; arrays and config are due")
        val values = config.values
        if (values["protocol"] != VERSION) throw RecordError("protocol is ${values["protocol"]}; this device speaks $VERSION")
        val apart = request.records.keys - setOf("arrays", "config") + (values.keys - if (trains) TRAIN_KEYS else BUNDLE_KEYS)
        if (apart.isNotEmpty()) {
            throw RequestRefusedError(
                "the request asks for ${apart.sorted()}, which this library does not know: it takes part in plain rounds " +
                    "(no secure aggregation, privacy, compression, control variates or refreshed feedback)",
            )
        }
        if (values["manifest_sha256"] != bundle.manifestSha256) {
            throw RequestRefusedError(
                "the request is for bundle ${values["bundle"]} ${values["bundle_version"]}; this device runs " +
                    "${bundle.manifest.name} ${bundle.manifest.version}: install the same bundle on both sides",
            )
        }
        if (!trains) return Asked(adapter.arrays, 0, 0, 0.0)
        val epochs = positive(values, "epochs")
        val batchSize = positive(values, "batch_size")
        val rate = values["learning_rate"] as? Double ?: throw RecordError("learning_rate: ${values["learning_rate"]}")
        if (!(rate.isFinite() && rate > 0)) throw RecordError("learning_rate is $rate; it must be positive and finite")
        return Asked(adapter.arrays, epochs, batchSize, rate)
    }

    private fun positive(values: Map<String, Any>, name: String): Int {
        val value = values[name] as? Long ?: throw RecordError("$name is ${values[name]}; a whole number is due")
        if (value !in 1..Int.MAX_VALUE) throw RecordError("$name is $value; it must be at least 1")
        return value.toInt()
    }
}
