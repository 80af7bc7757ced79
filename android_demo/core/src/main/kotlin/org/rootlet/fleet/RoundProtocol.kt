package org.rootlet.fleet

import java.math.BigInteger

/** The device does not accept the request (another bundle, beyond its bounds, unknown type). */
const val ERROR_REFUSED: Long = 1001

/** The device accepted the request and could not fulfil it. */
const val ERROR_FAILED: Long = 1002

/** The request could not be read. */
const val ERROR_MALFORMED: Long = 1003

/** The version of what rootlet says inside a Flower message (`docs/architecture.md`, contract 3). */
const val PROTOCOL_VERSION: Long = 1

/** float32 arrays by adapter name. */
typealias Adapter = Map<String, NpyArray>

/** What a model is measured by: accuracy for classification, mean squared error for regression. */
enum class Metric(val wire: String) { ACCURACY("accuracy"), ERROR("error") }

/**
 * A bundle, as requests name it.
 *
 * @property manifestSha256 its identity: SHA-256 of the manifest, in hex.
 */
data class BundleIdentity(val name: String, val version: Long, val manifestSha256: String)

/**
 * Measure this adapter on your held-out examples.
 *
 * @property round round of the federation, from 1; 0 before the first.
 */
class EvaluateRequest private constructor(val adapter: Adapter, val bundle: BundleIdentity, val round: Long) {
    companion object {
        /** @throws RecordError anything missing, unknown, of the wrong type or out of bounds. */
        fun of(records: Records): EvaluateRequest = of(records, checkedConfig(records, BUNDLE_KEYS, emptyMap()))

        internal fun of(records: Records, config: Map<String, Any>): EvaluateRequest {
            val adapter = (records["arrays"] as? ArrayRecord)?.arrays
                ?: throw RecordError("arrays is no ArrayRecord; it must be one")
            require(adapter.isNotEmpty(), "adapter", emptyMap<String, NpyArray>(), "at least one array")
            for ((name, array) in adapter) {
                require(array.dtype == Dtype.FLOAT32, "dtype of ${repr(name).take(100)}", array.dtype.numpy, "float32")
            }
            val bundle = BundleIdentity(config.text("bundle"), config.whole("bundle_version"), config.text("manifest_sha256"))
            require(bundle.name.codePointCount(0, bundle.name.length) in 1..MAX_NAME, "bundle", bundle.name, "1 to 200 characters")
            require(bundle.version >= 1, "bundle_version", bundle.version, "at least 1")
            require(SHA256.matches(bundle.manifestSha256), "manifest_sha256", bundle.manifestSha256, "64 lower-case hex digits")
            val round = config.whole("round")
            require(round >= 0, "round", round, "at least 0")
            return EvaluateRequest(adapter, bundle, round)
        }

        private const val MAX_NAME = 200
        private val SHA256 = Regex("[0-9a-f]{64}")
    }
}

/**
 * How to train.
 *
 * @property round round of the federation, from 1.
 * @property epochs passes over the examples.
 * @property batchSize examples of one step.
 * @property learningRate step size.
 */
data class TrainSettings(val round: Long, val epochs: Long, val batchSize: Long, val learningRate: Double)

/** Train this adapter on your examples, for plain federated averaging. */
class TrainRequest private constructor(val asked: EvaluateRequest, val settings: TrainSettings) {
    companion object {
        private val OPTIONS = mapOf("proximal_mu" to "float", "compression" to "str", "top_k" to "float")

        /** Records of rounds beyond plain averaging, and the options of such rounds. */
        private val BEYOND = mapOf(
            "feedback" to "refreshed feedback",
            "control" to "control variates",
            "compression" to "compressed updates",
            "proximal_mu" to "a proximal term",
        )

        /**
         * @throws RecordError anything missing, unknown, of the wrong type or out of bounds.
         * @throws RequestRefusedError a round that asks for more than plain averaging.
         */
        fun of(records: Records): TrainRequest {
            val plain = records - setOf("feedback", "control")
            val config = checkedConfig(plain, BUNDLE_KEYS + TRAIN_KEYS, OPTIONS)
            val topK = config["top_k"]
            require("compression" in config || topK in setOf(null, 0.0), "top_k", topK, "0 without compression")
            val asked = EvaluateRequest.of(plain, config)
            val rate = config["learning_rate"] as Double
            val settings = TrainSettings(asked.round, config.whole("epochs"), config.whole("batch_size"), rate)
            require(settings.epochs >= 1, "epochs", settings.epochs, "at least 1")
            require(settings.batchSize >= 1, "batch_size", settings.batchSize, "at least 1")
            require(rate > 0 && rate < Double.POSITIVE_INFINITY, "learning_rate", rate, "positive and finite")
            val beyond = BEYOND.filterKeys { it in records || (it in config && config[it] != 0.0) }.values
            if (beyond.isNotEmpty()) {
                throw RequestRefusedError(
                    "the request asks for ${beyond.joinToString()}; this device takes part in plain averaging only: " +
                        "leave that out of the rounds",
                )
            }
            return TrainRequest(asked, settings)
        }
    }
}

/**
 * How good the received adapter is.
 *
 * @property examples measured on.
 * @property loss mean loss of the received adapter.
 * @property received the metric of the received adapter.
 */
class Measured(val examples: Long, val loss: Double, val received: Double) {
    /** @throws RecordError a number that is not finite, or no examples. */
    internal fun toRecords(metric: Metric): Records = mapOf("metrics" to MetricRecord(numbers(metric)))

    internal fun numbers(metric: Metric): Map<String, Any> {
        require(examples >= 1, "num-examples", examples, "at least 1")
        val numbers = mapOf("loss" to loss, "${metric.wire}_received" to received)
        for ((name, value) in numbers) require(value.isFinite(), name, value, "finite")
        return mapOf("num-examples" to examples) + numbers
    }
}

/**
 * A trained adapter, and what it took.
 *
 * @property measured its examples are those trained on: the adapter's weight in the average; its loss is
 * the mean over the last epoch.
 * @property trained the metric of the trained adapter, on the examples that `received` is measured on.
 * @property seconds of training.
 * @property energyJ estimated energy of training and measuring, in joules.
 */
class Trained(val adapter: Adapter, val measured: Measured, val trained: Double, val seconds: Double, val energyJ: Double) {
    /** @throws RecordError no float32 adapter, or a number out of bounds. */
    internal fun toRecords(metric: Metric, bytesDown: Long): Records {
        require(adapter.isNotEmpty(), "adapter", emptyMap<String, NpyArray>(), "at least one array")
        for ((name, array) in adapter) {
            require(array.dtype == Dtype.FLOAT32, "dtype of ${repr(name)}", array.dtype.numpy, "float32")
        }
        require(trained.isFinite(), "${metric.wire}_trained", trained, "finite")
        for ((name, value) in mapOf("train_s" to seconds, "energy_estimated_j" to energyJ)) {
            require(value.isFinite(), name, value, "finite")
            require(value >= 0, name, value, "at least 0")
        }
        val arrays = mapOf("arrays" to ArrayRecord(adapter))
        val numbers = measured.numbers(metric) + mapOf(
            "${metric.wire}_trained" to trained,
            "train_s" to seconds,
            "energy_estimated_j" to energyJ,
            "bytes_down" to bytesDown,
            "bytes_up" to FleetObjects.bytesOf(arrays),
        )
        return arrays + mapOf("metrics" to MetricRecord(numbers))
    }
}

private val BUNDLE_KEYS = mapOf(
    "protocol" to "int",
    "bundle" to "str",
    "bundle_version" to "int",
    "manifest_sha256" to "str",
    "round" to "int",
)
private val TRAIN_KEYS = mapOf("epochs" to "int", "batch_size" to "int", "learning_rate" to "float")

/** The settings of a request; names and types beyond those of the contract are refused. */
private fun checkedConfig(records: Records, keys: Map<String, String>, optional: Map<String, String>): Map<String, Any> {
    checkNames("records", records.keys, setOf("arrays", "config"))
    val config = when (val record = records.getValue("config")) {
        is ConfigRecord -> record.values
        is MetricRecord -> record.values
        is ArrayRecord -> throw RecordError("config is an ArrayRecord; it must be a ConfigRecord")
    }
    val version = config["protocol"]
    if (version != PROTOCOL_VERSION) {
        throw RecordError(
            "protocol is ${repr(version).take(40)}; this device speaks $PROTOCOL_VERSION: install the same rootlet " +
                "version on both sides",
        )
    }
    val wanted = keys + optional.filterKeys { it in config }
    checkNames("config", config.keys, wanted.keys)
    for ((name, kind) in wanted) require(typeOf(config[name]) == kind, name, config[name], "of type $kind")
    return config
}

private fun checkNames(what: String, found: Set<String>, expected: Set<String>) {
    val missing = expected - found
    val unknown = found - expected
    if (missing.isEmpty() && unknown.isEmpty()) return
    throw RecordError(
        "$what: missing ${repr(missing.sorted())}, unknown ${repr(unknown.sorted()).take(200)}; protocol " +
            "$PROTOCOL_VERSION has ${repr(expected.sorted())}",
    )
}

private fun require(holds: Boolean, name: String, value: Any?, bound: String) {
    if (!holds) throw RecordError("$name is ${repr(value).take(100)}; it must be $bound")
}

private fun Map<String, Any>.text(name: String): String = getValue(name) as String

private fun Map<String, Any>.whole(name: String): Long =
    getValue(name) as? Long ?: throw RecordError("$name is ${getValue(name)}; it must be below 2^63")

private fun typeOf(value: Any?): String = when (value) {
    is Boolean -> "bool"
    is Long, is BigInteger -> "int"
    is Double -> "float"
    is String -> "str"
    is ByteArray -> "bytes"
    else -> "list"
}

/** A value as the Python SDK quotes it, so that both kinds of device explain themselves alike. */
internal fun repr(value: Any?): String = when (value) {
    null -> "None"
    true -> "True"
    false -> "False"
    is String -> if ('\'' in value && '"' !in value) "\"$value\"" else "'${value.replace("\\", "\\\\").replace("'", "\\'")}'"
    is ByteArray -> "b'…' (${value.size} bytes)"
    is List<*> -> value.joinToString(", ", "[", "]", transform = ::repr)
    else -> value.toString()
}
