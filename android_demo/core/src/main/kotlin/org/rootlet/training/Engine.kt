package org.rootlet.training

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OnnxValue
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.rootlet.TrainingError
import org.rootlet.bundle.BASE_FILE
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.TensorSpec
import org.rootlet.wire.FloatTensor

/**
 * The stock ONNX Runtime, running a bundle's graphs.
 *
 * The adapter and the optimiser's state lie in two sets of tensors outside the JVM's heap. A step reads
 * the one and writes the other, and then the two change places: nothing is copied, and a step that fails
 * leaves the state before it. Sessions are opened when they are first used.
 */
internal class Engine(private val bundle: Bundle, private val threads: Int) : Closeable {
    private val manifest = bundle.manifest
    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment().also { it.setTelemetry(false) }
    private val slots = listOf(Slot(), Slot())
    private val sessions = HashMap<String, OrtSession>()
    private val weights = ArrayList<OnnxTensor>()
    private val batches = HashMap<String, BatchTensors>()
    private var current = 0

    /** Steps since the optimiser was at its start. */
    var steps = 0
        private set

    /** The state as copies: the adapter, then the optimiser's tensors. */
    fun state(): Pair<Map<String, FloatTensor>, Map<String, FloatTensor>> = slots[current].let {
        copies(manifest.adapter, it.adapter) to copies(manifest.optimizerState, it.optimizer)
    }

    /** Takes over a state; it is whole in the other slot before it becomes the current one. */
    fun load(adapter: Map<String, FloatTensor>, optimizer: Map<String, FloatTensor>, steps: Int) {
        val other = slots[1 - current]
        for ((name, tensor) in adapter) other.adapter.getValue(name).fill(tensor.values)
        for ((name, tensor) in optimizer) other.optimizer.getValue(name).fill(tensor.values)
        current = 1 - current
        this.steps = steps
    }

    /** One training step on the rows [chosen]: loss and metric of the batch, before the update. */
    fun step(examples: Examples, chosen: IntArray, size: Int, learningRate: Double): Pair<Float, Float> {
        val batch = batch("train", size)
        batch.fill(examples, chosen)
        batch.scalar("learning_rate", learningRate.toFloat())
        batch.scalar("step", (steps + 1).toFloat())
        val from = slots[current]
        val to = slots[1 - current]
        val pinned = HashMap<String, OnnxValue>()
        for ((name, tensor) in to.inputs) pinned["next/$name"] = tensor.value
        val found = run("train", batch.inputs + from.inputs.mapValues { it.value.value }, setOf("loss", "metric"), pinned) {
            scalar(it, "loss") to scalar(it, "metric")
        }
        steps++
        current = 1 - current
        return found
    }

    /** Sums over the rows of loss, metric and weight. */
    fun evaluate(examples: Examples, chosen: IntArray, size: Int): Triple<Double, Double, Double> {
        val batch = batch("evaluate", size)
        batch.fill(examples, chosen)
        val sums = listOf("loss_sum", "metric_sum", "weight_sum")
        return run("evaluate", batch.inputs + adapterInputs(), sums.toSet(), emptyMap()) { found ->
            val (loss, metric, weight) = sums.map { scalar(found, it).toDouble() }
            Triple(loss, metric, weight)
        }
    }

    /** What the graph `predict` or `encode` gives for the rows [chosen], [size, …]. */
    fun output(role: String, x: ByteBuffer, chosen: IntArray, size: Int): FloatArray {
        val batch = batch(role, size)
        batch.fillInputs(x, chosen)
        val inputs = if (role == "encode") batch.inputs else batch.inputs + adapterInputs()
        val name = if (role == "encode") "latent" else "output"
        return run(role, inputs, setOf(name), emptyMap()) { found ->
            val values = (found.get(name).get() as OnnxTensor).floatBuffer
            FloatArray(values.remaining()).also { values.get(it) }
        }
    }

    override fun close() {
        batches.values.forEach { it.close() }
        sessions.values.forEach { it.close() }
        weights.forEach { it.close() }
        slots.forEach { it.close() }
    }

    private fun adapterInputs(): Map<String, OnnxTensor> =
        slots[current].adapter.entries.associate { (name, tensor) -> "adapter/$name" to tensor.value }

    private fun <T> run(
        role: String,
        inputs: Map<String, OnnxTensor>,
        outputs: Set<String>,
        pinned: Map<String, OnnxValue>,
        read: (OrtSession.Result) -> T,
    ): T = try {
        val session = session(role)
        session.run(inputs.filterKeys { it in session.inputNames }, outputs, pinned).use(read)
    } catch (error: OrtException) {
        throw TrainingError("the $role graph failed: ${error.message}", error)
    }

    private fun scalar(found: OrtSession.Result, name: String): Float {
        val tensor = found.get(name).get() as OnnxTensor
        if (tensor.info.shape.isNotEmpty()) {
            throw TrainingError("the output $name has the shape ${tensor.info.shape.toList()}; a number is due")
        }
        return tensor.floatBuffer.get(0)
    }

    private fun session(role: String): OrtSession = sessions.getOrPut(role) {
        OrtSession.SessionOptions().use { options ->
            options.setIntraOpNumThreads(threads)
            options.setInterOpNumThreads(1)
            AS_WRITTEN.forEach { (key, value) -> options.addConfigEntry(key, value) }
            val external = bundle.external.getValue(role).associate { it.name to weight(it.dataType, it.shape, it.offset, it.length) }
            if (external.isNotEmpty()) options.addExternalInitializers(external)
            environment.createSession(bundle.entry(manifest.graphs.getValue(role).file), options)
        }
    }

    /** A view of `base.bin`, which outlives the session. */
    private fun weight(dataType: Long, shape: List<Long>, offset: Long, length: Long): OnnxTensor {
        val type = JAVA_TYPES[dataType] ?: throw TrainingError(
            "a weight has ONNX's data type $dataType, which the Java API of ONNX Runtime cannot hand over; " +
                "compile the bundle with base_dtype int8 or float32",
        )
        val base = bundle.entry(BASE_FILE)
        base.position(offset.toInt())
        base.limit((offset + length).toInt())
        val view = base.slice().order(ByteOrder.nativeOrder())
        return OnnxTensor.createTensor(environment, view, shape.toLongArray(), type).also(weights::add)
    }

    private fun batch(role: String, size: Int): BatchTensors {
        batches[role]?.let {
            if (it.size == size) return it
            it.close()
        }
        return BatchTensors(manifest.inputsOf(role), manifest.graphs.getValue(role).inputs.toSet(), size)
            .also { batches[role] = it }
    }

    private fun copies(specs: List<TensorSpec>, tensors: Map<String, NativeTensor>) =
        specs.associate { it.name to FloatTensor(it.shapeOf(0), tensors.getValue(it.name).copy()) }

    /** One complete state outside the heap. */
    private inner class Slot : Closeable {
        val adapter = manifest.adapter.associate { it.name to NativeTensor(it, 0) }
        val optimizer = manifest.optimizerState.associate { it.name to NativeTensor(it, 0) }
        val inputs = adapter.mapKeys { "adapter/${it.key}" } + optimizer.mapKeys { "optimizer/${it.key}" }

        override fun close() = inputs.values.forEach { it.value.close() }
    }

    /** Memory outside the heap that is a tensor for the engine and a buffer for us. */
    private inner class NativeTensor(spec: TensorSpec, batch: Int) {
        val shape = spec.shapeOf(batch)
        val bytes: ByteBuffer =
            Examples.direct(Math.toIntExact(shape.fold(1L, Math::multiplyExact)), Examples.elementBytes(spec.dtype))
        val value: OnnxTensor = OnnxTensor.createTensor(environment, bytes, shape, TYPES.getValue(spec.dtype))

        fun fill(values: FloatArray) {
            bytes.asFloatBuffer().put(values)
        }

        fun copy() = FloatArray(bytes.capacity() / Float.SIZE_BYTES).also { bytes.asFloatBuffer().get(it) }
    }

    /** What a graph takes for one size of batch. */
    private inner class BatchTensors(specs: Map<String, TensorSpec>, wanted: Set<String>, val size: Int) : Closeable {
        private val tensors = specs
            .filterKeys { it in wanted && !it.startsWith("adapter/") && !it.startsWith("optimizer/") }
            .mapValues { NativeTensor(it.value, size) }
        val inputs: Map<String, OnnxTensor> = tensors.mapValues { it.value.value }

        fun fill(examples: Examples, chosen: IntArray) {
            fillInputs(examples.x, chosen)
            val y = tensors.getValue("y").bytes
            gather(examples.y, y, y.capacity() / size, chosen, size)
            tensors.getValue("w").fill(FloatArray(size) { if (it < chosen.size) 1f else 0f })
        }

        fun fillInputs(x: ByteBuffer, chosen: IntArray) {
            val target = tensors.getValue("x").bytes
            gather(x, target, target.capacity() / size, chosen, size)
        }

        fun scalar(name: String, value: Float) {
            tensors[name]?.bytes?.putFloat(0, value)
        }

        override fun close() = tensors.values.forEach { it.value.close() }
    }

    private companion object {
        /**
         * So that quantised products are what the graph says (`engines/onnx.py`). The Python runtime also sets
         * `session.x64quantprecision`, for x86-64 without VNNI, whose products saturate at 16 bits; with it ONNX
         * Runtime 1.29 ends the process while it loads an int8 graph. Phones are not concerned, old emulators are.
         */
        val AS_WRITTEN = mapOf("session.qdq_matmulnbits_accuracy_level" to "0")
        val TYPES = mapOf("float32" to OnnxJavaType.FLOAT, "int64" to OnnxJavaType.INT64, "uint8" to OnnxJavaType.UINT8)
        val JAVA_TYPES = mapOf(
            1L to OnnxJavaType.FLOAT, 2L to OnnxJavaType.UINT8, 3L to OnnxJavaType.INT8, 5L to OnnxJavaType.INT16,
            6L to OnnxJavaType.INT32, 7L to OnnxJavaType.INT64, 9L to OnnxJavaType.BOOL, 10L to OnnxJavaType.FLOAT16,
            11L to OnnxJavaType.DOUBLE,
        )
    }
}
