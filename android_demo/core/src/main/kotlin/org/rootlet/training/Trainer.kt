package org.rootlet.training

import java.io.Closeable
import java.io.File
import org.rootlet.CheckpointError
import org.rootlet.DataError
import org.rootlet.NonFiniteLossError
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.checkTensors
import org.rootlet.wire.FloatTensor

/** Means over the examples; [metric] is accuracy, or mean squared error for a regression. */
data class Evaluation(val loss: Double, val metric: Double, val examples: Int)

/** Where a fit is: epoch and step count from 1, loss and metric are the last step's. */
data class FitProgress(val epoch: Int, val epochs: Int, val step: Int, val steps: Int, val loss: Float, val metric: Float)

/**
 * What a fit did.
 *
 * @property steps taken in all, those before a resume included.
 * @property loss mean over the last epoch's steps of this call, each taken before its update.
 * @property stopped whether it was stopped between two steps; the same call, made again, goes on.
 * @property resumedFromStep steps that an earlier, unfinished call had taken.
 */
data class FitResult(
    val steps: Int,
    val examples: Int,
    val loss: Double,
    val metric: Double,
    val stopped: Boolean,
    val resumedFromStep: Int,
)

/** How a fit trains. [seed] decides the order of the examples; the rest is the publisher's by default. */
data class FitSettings(
    val epochs: Int,
    val batchSize: Int,
    val learningRate: Double,
    val seed: Long,
    val schedule: RateSchedule = RateSchedule.CONSTANT,
    val checkpointEvery: Int = 50,
)

/**
 * Trains, measures and uses the adapter of a verified bundle.
 *
 * All calls may come from any thread; they wait for each other, for one step at most.
 * The same bundle, examples, settings and start give the adapter that the Python runtime computes, up to
 * the rounding of another build of the engine. Of the Python runtime's guard only this is here: a loss or
 * an adapter that is not finite ends the fit, and the adapter from before is back.
 *
 * @param threads of the engine.
 */
class Trainer(val bundle: Bundle, threads: Int = 1) : Closeable {
    private val manifest = bundle.manifest
    private val engine = Engine(bundle, threads)
    private val lock = Any()

    init {
        loadAdapter(bundle.initialAdapter())
    }

    /** The settings that the publisher suggests. */
    fun suggested(seed: Long): FitSettings = manifest.training.let {
        FitSettings(it.epochs, it.batchSize, it.learningRate, seed, RateSchedule(it.decay, it.warmup))
    }

    /**
     * Trains on from the present adapter and optimiser state.
     *
     * With [checkpoint], a fit that was stopped or killed is taken up by the next call that starts from the
     * same bundle, state, examples and settings, and ends with the bits of one that ran through. A checkpoint
     * of any other fit is ignored, and replaced.
     *
     * @param replay mixes examples of a buffer into every batch; when the fit ends, each is charged its uses.
     * @param progress called after every step; false stops between two steps.
     * @throws DataError the settings cannot be used.
     * @throws NonFiniteLossError a loss or the adapter left the finite numbers; nothing has changed.
     * @throws CheckpointError a checkpoint is damaged or cannot be written.
     */
    fun fit(
        examples: Examples,
        settings: FitSettings,
        checkpoint: File? = null,
        replay: Replay? = null,
        progress: (FitProgress) -> Boolean = { true },
    ): FitResult {
        check(settings)
        val replayed = replay?.buffer?.size ?: 0
        val learned = latents(examples).let { if (replay == null || replayed == 0) it else replay.buffer.after(it) }
        val size = minOf(settings.batchSize, learned.count)
        val perBatch = if (replay == null || replayed == 0) 0 else replay.rowsPerBatch(size)
        val order = BatchOrder(settings.seed, examples.count, size, replayed, perBatch)
        val start = synchronized(lock) { state() }
        val kept = checkpoint?.let { FitCheckpoint(it, fingerprint("${bundle.manifestSha256} $perBatch", start, learned, settings)) }
        val found = kept?.read(manifest.adapter, manifest.optimizerState)
        found?.let { synchronized(lock) { load(it.state) } }
        try {
            val result = FitLoop(learned, size, order, settings, found?.step ?: 0, kept, progress).finish()
            if (!result.stopped && replay != null) replay.buffer.charge(order.uses(result.steps))
            return result
        } catch (error: Throwable) {
            synchronized(lock) { load(start) }
            throw error
        }
    }

    /**
     * Offers examples to a replay buffer, which keeps their latents where the bundle learns from those.
     *
     * @param seed decides which are kept, as `numpy.random.default_rng(seed)` would; not negative.
     * @param used how often they have been trained on.
     * @throws DataError they are not this bundle's, or cannot be stored; the buffer is as it was.
     */
    fun remember(buffer: ReplayBuffer, examples: Examples, seed: Long, used: Int = 0) {
        if (seed < 0) throw DataError("seed $seed: must not be negative")
        buffer.add(latents(examples), NumpyRandom(seed), used)
    }

    /** Loss and metric of the present adapter. */
    fun evaluate(examples: Examples): Evaluation {
        val learned = latents(examples)
        val size = minOf(EVALUATION_BATCH, manifest.maxBatch, examples.count)
        var loss = 0.0
        var metric = 0.0
        var weight = 0.0
        for (rows in inOrder(examples.count, size)) {
            val (losses, metrics, weights) = synchronized(lock) { engine.evaluate(learned, rows, size) }
            loss += losses
            metric += metrics
            weight += weights
        }
        return Evaluation(loss / weight, metric / weight, examples.count)
    }

    /**
     * The outputs of the present adapter, one row for each of the [count] rows of [x]; for a classifier the
     * probabilities of the classes.
     */
    fun predict(x: Any, count: Int): List<FloatArray> {
        val rows = Examples.rows(manifest.x, x, count)
        val size = minOf(EVALUATION_BATCH, manifest.maxBatch, count)
        val width = manifest.numOutputs
        return inOrder(count, size).flatMap { chosen ->
            val values = synchronized(lock) { engine.output("predict", rows, chosen, size) }
            chosen.indices.map { values.copyOfRange(it * width, (it + 1) * width) }
        }
    }

    /** The present adapter, as copies. */
    fun adapter(): Map<String, FloatTensor> = synchronized(lock) { engine.state().first }

    /**
     * Takes over an adapter, with the optimiser at its start.
     *
     * @throws org.rootlet.AdapterError it does not fit the bundle; the present one is kept.
     */
    fun loadAdapter(adapter: Map<String, FloatTensor>) {
        val checked = checkTensors(adapter, manifest.adapter)
        val zeros = manifest.optimizerState.associate { it.name to FloatTensor(it.shapeOf(0), FloatArray(it.elements.toInt())) }
        synchronized(lock) { load(TrainState(checked, zeros, 0)) }
    }

    /** Writes adapter, optimiser state and step; the file is replaced at once or not at all. */
    fun save(file: File) = FitCheckpoint(file, bundle.manifestSha256).write(synchronized(lock) { state() }, 0)

    /**
     * Takes over what [save] wrote.
     *
     * @throws CheckpointError absent, damaged, or of another bundle; the present state is kept.
     */
    fun restore(file: File) {
        val found = FitCheckpoint(file, bundle.manifestSha256).read(manifest.adapter, manifest.optimizerState)
            ?: throw CheckpointError("$file: holds no state of this bundle; Trainer.save writes one")
        synchronized(lock) { load(found.state) }
    }

    override fun close() = synchronized(lock) { engine.close() }

    private fun state(): TrainState = engine.state().let { (adapter, optimizer) -> TrainState(adapter, optimizer, engine.steps) }

    private fun load(state: TrainState) = engine.load(state.adapter, state.optimizer, state.steps)

    private fun latents(examples: Examples): Examples {
        val latent = manifest.latent ?: return examples
        val size = minOf(EVALUATION_BATCH, manifest.maxBatch, examples.count)
        val width = latent.elements.toInt()
        val encoded = Examples.direct(Math.multiplyExact(examples.count, width), Float.SIZE_BYTES)
        val target = encoded.asFloatBuffer()
        for (rows in inOrder(examples.count, size)) {
            target.put(synchronized(lock) { engine.output("encode", examples.x, rows, size) }, 0, rows.size * width)
        }
        return Examples(examples.count, encoded, examples.y)
    }

    private fun check(settings: FitSettings) {
        if (settings.epochs < 1) throw DataError("epochs ${settings.epochs}: must be at least 1")
        if (settings.batchSize !in 1..manifest.maxBatch) {
            throw DataError("batch_size ${settings.batchSize}: must lie in 1..${manifest.maxBatch}")
        }
        if (!(settings.learningRate.isFinite() && settings.learningRate > 0)) {
            throw DataError("learning_rate ${settings.learningRate}: must be positive and finite")
        }
        if (settings.seed < 0) throw DataError("seed ${settings.seed}: must not be negative")
        if (settings.checkpointEvery < 1) throw DataError("checkpointEvery ${settings.checkpointEvery}: must be at least 1")
    }

    /** The loop over batches. */
    private inner class FitLoop(
        private val examples: Examples,
        private val size: Int,
        private val order: BatchOrder,
        private val settings: FitSettings,
        private val first: Int,
        private val kept: FitCheckpoint?,
        private val progress: (FitProgress) -> Boolean,
    ) {
        private val stepsPerEpoch = order.stepsPerEpoch
        private val steps = Math.multiplyExact(stepsPerEpoch, settings.epochs)
        private var lossSum = 0.0
        private var metricSum = 0.0
        private var seen = 0
        private var total = 0

        fun finish(): FitResult {
            var step = first
            var stopped = false
            while (step < steps && !stopped) {
                val rows = order.rows(step)
                val rate = settings.learningRate * settings.schedule.factor(step, steps)
                val (loss, metric) = synchronized(lock) { engine.step(examples, rows, size, rate) }
                step++
                if (!loss.isFinite()) throw NonFiniteLossError("the loss of step $step is $loss; lower the learning rate")
                if ((step - 1) % stepsPerEpoch == 0) {
                    seen = 0
                    lossSum = 0.0
                    metricSum = 0.0
                }
                seen += rows.size
                total += rows.size
                lossSum += loss.toDouble() * rows.size
                metricSum += metric.toDouble() * rows.size
                val report = FitProgress(1 + (step - 1) / stepsPerEpoch, settings.epochs, step, steps, loss, metric)
                stopped = !progress(report) && step < steps
                if (step < steps && (stopped || step % settings.checkpointEvery == 0)) keep(step)
            }
            checkFinite()
            if (!stopped) kept?.remove()
            val mean = { sum: Double -> if (seen == 0) 0.0 else sum / seen }
            return FitResult(step, total, mean(lossSum), mean(metricSum), stopped, first)
        }

        private fun keep(step: Int) {
            checkFinite()
            kept?.write(synchronized(lock) { state() }, step)
        }

        private fun checkFinite() {
            val bad = adapter().entries.firstOrNull { (_, tensor) -> !tensor.values.all { it.isFinite() } }
            if (bad != null) throw NonFiniteLossError("${bad.key} left the finite numbers; lower the learning rate")
        }
    }

    private companion object {
        const val EVALUATION_BATCH = 64

        fun inOrder(count: Int, size: Int): List<IntArray> =
            (0 until count step size).map { start -> IntArray(minOf(size, count - start)) { start + it } }
    }
}
