package org.rootlet.fleet

import java.security.SecureRandom
import org.rootlet.training.Examples
import org.rootlet.training.FitSettings
import org.rootlet.training.RateSchedule
import org.rootlet.training.Trainer
import org.rootlet.wire.FloatTensor

/**
 * What a device does in a round with a bundle's trainer and its own examples.
 *
 * After a training the trainer holds the trained adapter; measuring, and whatever fails, leaves the one from before.
 *
 * @param train the examples to train on, at least one.
 * @param holdout those to measure on; null to measure on the training ones.
 * @param perExampleJ estimated energy of training on one example, in joules; nothing is measured here.
 */
class TrainerWork(
    private val trainer: Trainer,
    private val train: () -> Examples,
    private val holdout: () -> Examples? = { null },
    private val perExampleJ: Double = 0.0,
) : RoundWork {
    private val random = SecureRandom()
    private val manifest = trainer.bundle.manifest
    override val bundle = BundleIdentity(manifest.name, manifest.version, trainer.bundle.manifestSha256)
    override val metric = if (manifest.classifies) Metric.ACCURACY else Metric.ERROR
    override val maxBatch = manifest.maxBatch.toLong()

    override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained? {
        val examples = train()
        val measured = holdout() ?: examples
        val before = trainer.adapter()
        var kept = false
        try {
            trainer.loadAdapter(tensors(adapter))
            val received = trainer.evaluate(measured)
            val started = System.nanoTime()
            val result = trainer.fit(examples, fitSettings(settings)) { !shouldStop() }
            if (result.stopped) return null
            val seconds = (System.nanoTime() - started) / 1e9
            val trained = trainer.evaluate(measured)
            kept = true
            return Trained(
                trainer.adapter().mapValues { (_, tensor) -> NpyArray.of(tensor.shape.map { Math.toIntExact(it) }, tensor.values) },
                Measured(examples.count.toLong(), result.loss, received.metric),
                trained.metric,
                seconds,
                perExampleJ * result.examples,
            )
        } finally {
            if (!kept) trainer.loadAdapter(before)
        }
    }

    override fun evaluate(adapter: Adapter): Measured {
        val before = trainer.adapter()
        try {
            trainer.loadAdapter(tensors(adapter))
            val found = trainer.evaluate(holdout() ?: train())
            return Measured(found.examples.toLong(), found.loss, found.metric)
        } finally {
            trainer.loadAdapter(before)
        }
    }

    private fun fitSettings(asked: TrainSettings) = FitSettings(
        Math.toIntExact(asked.epochs), Math.toIntExact(asked.batchSize), asked.learningRate, random.nextLong() ushr 1,
        RateSchedule("constant", 0.1),
    )

    private fun tensors(adapter: Adapter) = adapter.mapValues { (_, array) -> FloatTensor(array.shape.map { it.toLong() }.toLongArray(), array.floats()) }
}
