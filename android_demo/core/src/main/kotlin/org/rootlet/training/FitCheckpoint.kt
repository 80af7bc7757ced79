package org.rootlet.training

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.security.MessageDigest
import org.rootlet.AdapterError
import org.rootlet.CheckpointError
import org.rootlet.bundle.TensorSpec
import org.rootlet.bundle.checkTensors
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors
import org.rootlet.wire.WireError
import org.rootlet.wire.replaceFile
import org.rootlet.wire.sha256
import org.rootlet.wire.toHex

/** Adapter and optimiser tensors by name, and the steps since the optimiser was reset. */
class TrainState(val adapter: Map<String, FloatTensor>, val optimizer: Map<String, FloatTensor>, val steps: Int)

/** A state, and the step of the fit at which it was taken. */
internal class KeptState(val state: TrainState, val step: Int)

/**
 * One state in a file: safetensors, whose metadata names what it belongs to, with a SHA-256 over both.
 *
 * @param belongsTo what must be the same for the file to be read.
 */
internal class FitCheckpoint(private val file: File, private val belongsTo: String) {
    /**
     * What the file holds; null where there is none, or one that belongs to something else.
     *
     * @throws CheckpointError damaged.
     */
    fun read(adapter: List<TensorSpec>, optimizer: List<TensorSpec>): KeptState? {
        if (!file.exists()) return null
        try {
            val content = file.readBytes()
            if (content.size < DIGEST_BYTES) throw CheckpointError("$file: ${content.size} bytes; cut off")
            val tensors = content.copyOfRange(DIGEST_BYTES, content.size)
            if (!MessageDigest.isEqual(sha256(tensors), content.copyOf(DIGEST_BYTES))) {
                throw CheckpointError("$file: damaged; delete it to start anew")
            }
            val metadata = SafeTensors.metadata(ByteBuffer.wrap(tensors))
            if (metadata["belongs_to"] != belongsTo) return null
            val found = SafeTensors.read(ByteBuffer.wrap(tensors))
            val (learned, state) = found.entries.partition { it.key.startsWith(ADAPTER) }
            return KeptState(
                TrainState(
                    checkTensors(learned.associate { it.key.removePrefix(ADAPTER) to it.value }, adapter),
                    checkTensors(state.associate { it.key.removePrefix(OPTIMIZER) to it.value }, optimizer),
                    metadata.getValue("steps").toInt(),
                ),
                metadata.getValue("step").toInt(),
            )
        } catch (error: Exception) {
            throw when (error) {
                is WireError, is AdapterError, is IOException, is NumberFormatException, is NoSuchElementException ->
                    CheckpointError("$file: cannot be read: ${error.message}; delete it to start anew", error)
                else -> error
            }
        }
    }

    /**
     * Replaces the file at once, after its content has reached the disk.
     *
     * @throws CheckpointError it cannot be written.
     */
    fun write(state: TrainState, step: Int) {
        val named = state.adapter.mapKeys { ADAPTER + it.key } + state.optimizer.mapKeys { OPTIMIZER + it.key }
        val metadata = mapOf("belongs_to" to belongsTo, "step" to "$step", "steps" to "${state.steps}")
        val tensors = SafeTensors.write(named, metadata)
        try {
            replaceFile(file, sha256(tensors), tensors)
        } catch (error: IOException) {
            throw CheckpointError("$file: cannot be written: ${error.message}", error)
        }
    }

    /** Leaves nothing to take up. */
    fun remove() {
        if (file.exists() && !file.delete()) throw CheckpointError("$file: cannot be deleted")
    }

    private companion object {
        const val DIGEST_BYTES = 32
        const val ADAPTER = "adapter/"
        const val OPTIMIZER = "optimizer/"
    }
}

/** SHA-256 (hex) over all that decides how a fit goes. */
internal fun fingerprint(bundle: String, start: TrainState, examples: Examples, settings: FitSettings): String {
    val digest = MessageDigest.getInstance("SHA-256")
    digest.update("$bundle|${start.steps}|${examples.count}|${settings.copy(checkpointEvery = 1)}".toByteArray())
    for ((name, tensor) in start.adapter + start.optimizer) {
        digest.update("|$name|".toByteArray())
        val bytes = ByteBuffer.allocate(Float.SIZE_BYTES * tensor.values.size)
        bytes.asFloatBuffer().put(tensor.values)
        digest.update(bytes)
    }
    for (part in listOf(examples.x, examples.y)) digest.update(part.duplicate().apply { clear() })
    return digest.digest().toHex()
}
