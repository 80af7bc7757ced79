package org.rootlet.bundle

import java.text.ParsePosition
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import org.rootlet.ManifestError
import org.rootlet.wire.JsonObject
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

const val MANIFEST_FILE = "manifest.json"
const val SIGNATURE_FILE = "manifest.sig"
const val ADAPTER_FILE = "adapter.safetensors"
const val BASE_FILE = "base.bin"
const val SCHEMA = 1L

/** Name, data type and shape of one tensor; null in a shape is the batch dimension. */
data class TensorSpec(val name: String, val dtype: String, val shape: List<Long?>) {
    /** Elements of one example, or of the whole tensor where no dimension is open. */
    val elements: Long get() = shape.filterNotNull().fold(1L, Math::multiplyExact)

    /** The shape with the batch dimension filled in. */
    fun shapeOf(batch: Int): LongArray = LongArray(shape.size) { shape[it] ?: batch.toLong() }
}

/** One graph: its file and the names it takes and gives, in order. */
data class GraphSpec(val file: String, val inputs: List<String>, val outputs: List<String>)

/** SHA-256 (hex) and size in bytes of one file of the bundle. */
data class FileEntry(val sha256: String, val size: Long)

/** The publisher's suggestion for a training; nothing enforces it. */
data class TrainingDefaults(
    val learningRate: Double,
    val batchSize: Int,
    val epochs: Int,
    val decay: String,
    val warmup: Double,
)

/** Everything a device knows of a bundle before it runs it (`docs/bundle.md`). */
class Manifest internal constructor(
    val name: String,
    val version: Long,
    val createdAt: Date,
    val expiresAt: Date?,
    val publisher: String?,
    val task: String,
    val rule: String,
    val optimizer: String,
    val maxBatch: Int,
    val x: TensorSpec,
    val y: TensorSpec,
    val latent: TensorSpec?,
    val numOutputs: Int,
    val labels: List<String>?,
    val adapter: List<TensorSpec>,
    val optimizerState: List<TensorSpec>,
    val graphs: Map<String, GraphSpec>,
    val litertFile: String?,
    val training: TrainingDefaults,
    val cost: Map<String, Long>,
    val files: Map<String, FileEntry>,
) {
    /** What the train graph takes as `x`: the latent, or the input itself. */
    val learnsFrom: TensorSpec get() = latent ?: x

    /** Whether the train graph takes a teacher's outputs beside the labels. */
    val distils: Boolean get() = "teacher" in graphs.getValue("train").inputs

    /** Whether labels are classes; otherwise they are targets [B, K]. */
    val classifies: Boolean get() = task == "classification"

    /** What each input of a graph is, by its name there. */
    fun inputsOf(role: String): Map<String, TensorSpec> {
        val whole = role == "predict" || role == "encode"
        val found = LinkedHashMap<String, TensorSpec>()
        found["x"] = if (whole) x else learnsFrom
        found["y"] = y
        found["w"] = TensorSpec("w", "float32", listOf(null))
        found["teacher"] = TensorSpec("teacher", "float32", listOf(null, numOutputs.toLong()))
        found["teacher_weight"] = TensorSpec("teacher_weight", "float32", listOf(null))
        for (scalar in listOf("learning_rate", "max_grad_norm", "step")) {
            found[scalar] = TensorSpec(scalar, "float32", emptyList())
        }
        adapter.forEach { found["adapter/${it.name}"] = it }
        optimizerState.forEach { found["optimizer/${it.name}"] = it }
        return found
    }

    companion object {
        /**
         * Decodes and validates; a field that this version does not know is refused, because it might
         * change the meaning of the others.
         *
         * @throws ManifestError not JSON, an unknown or missing field, an impossible value.
         */
        fun parse(raw: ByteArray): Manifest = try {
            ManifestReader(StrictJson.parseObject(raw)).read()
        } catch (error: StrictJsonError) {
            throw ManifestError("$MANIFEST_FILE: ${error.message}", error)
        } catch (error: ArithmeticException) {
            throw ManifestError("$MANIFEST_FILE: a tensor has more elements than 64 bits count", error)
        }

        /** A time as the manifest writes it: RFC 3339, UTC, whole seconds; null if it is none. */
        fun time(text: String): Date? {
            if (!TIME.matches(text)) return null
            val position = ParsePosition(0)
            return timeFormat().parse(text, position)?.takeIf { position.index == text.length }
        }

        /** As [time] reads it. */
        fun formatTime(time: Date): String = timeFormat().format(time)

        private val TIME = Regex("\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}Z")

        private fun timeFormat() = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT).apply {
            timeZone = TimeZone.getTimeZone("UTC")
            isLenient = false
        }
    }
}

/** One tensor's entry in the manifest. */
internal fun readTensor(fields: JsonObject): TensorSpec {
    val name = fields.text("name")
    require(TENSOR_NAME.matches(name)) { "tensor name: '$name'" }
    val shape = fields.list("shape").map { size: Any? ->
        if (size != null && (size !is Long || size !in 1..Int.MAX_VALUE)) {
            throw ManifestError("$name: a dimension is $size; must lie in 1..${Int.MAX_VALUE}")
        }
        size
    }
    require(shape.size <= 8) { "$name: ${shape.size} dimensions; at most 8" }
    return TensorSpec(name, fields.text("dtype"), shape).also { fields.finish() }
}

private val TENSOR_NAME = Regex("[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}")

/** @throws ManifestError the condition does not hold. */
internal inline fun require(condition: Boolean, message: () -> String) {
    if (!condition) throw ManifestError(message())
}
