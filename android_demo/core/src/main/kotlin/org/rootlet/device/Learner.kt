package org.rootlet.device

import java.io.Closeable
import java.io.File
import org.rootlet.CheckpointError
import org.rootlet.bundle.Bundle
import org.rootlet.fleet.Adapter
import org.rootlet.fleet.Measured
import org.rootlet.fleet.RoundWork
import org.rootlet.fleet.TrainSettings
import org.rootlet.fleet.Trained
import org.rootlet.fleet.TrainerWork
import org.rootlet.training.Trainer
import org.rootlet.wire.StrictJsonError

/**
 * What the last training made of the model, measured on the examples that it learnt from.
 *
 * @property before accuracy before it, 0 to 1; [after] after it.
 * @property inRound whether a server had asked for it, and [before] is that of the adapter it sent.
 */
data class Learnt(val before: Double, val after: Double, val examples: Int, val inRound: Boolean)

/**
 * A classifier that learns from what its user teaches, alone and in rounds: a bundle's trainer, the examples, and
 * what both have come to, kept in a folder.
 *
 * Calls may come from any thread. Trainings, the rounds' included, wait for each other; predictions wait for one step.
 *
 * @param bundle closed with this.
 * @param battery reads the gauge before and after each training.
 * @throws org.rootlet.DataError the kept examples are damaged, or of another bundle's shape.
 */
class Learner(
    private val bundle: Bundle,
    private val folder: File,
    threads: Int = 1,
    private val battery: () -> BatteryReading = { BatteryReading() },
) : Closeable {
    /** What was taught. */
    val examples = KeptExamples(File(folder, "examples.safetensors"), bundle.manifest)

    private val trainer = Trainer(bundle, threads)
    private val state = File(folder, "trainer")
    private val known = PrivateFile(File(folder, "learnt.json"))
    private val cost = bundle.manifest.cost
    private val training = Any()

    /** What training spent. */
    val energy = EnergyAccount(File(folder, "energy.json"))

    /** What the bundle calls itself. */
    val name: String = "${bundle.manifest.name} ${bundle.manifest.version}"

    /** The last training that was finished; null without any. */
    @Volatile
    var learnt: Learnt? = null
        private set

    /** Why what was learnt before is not used; empty where it is. */
    var forgotten: String = ""
        private set

    init {
        try {
            goBack()
            learnt = known.readObject()?.let {
                Learnt(it.double("before"), it.double("after"), it.long("examples").toInt(), it.boolean("in_round"))
            }
        } catch (error: CheckpointError) { // an update of the app brings another bundle
            forgotten = "the model starts anew: ${error.message}"
        } catch (error: StrictJsonError) {
            forgotten = "the last training's figures are damaged: ${error.message}"
        }
    }

    /** The probabilities of the classes. */
    fun predict(example: FloatArray): FloatArray = trainer.predict(example, 1)[0]

    /**
     * Trains on what was taught, by the publisher's settings, and keeps what was learnt. An interrupted training is
     * kept too, and taken up by the next call.
     *
     * @param goOn asked after every step.
     * @return null where there is nothing to learn from, or [goOn] interrupted it.
     */
    fun train(goOn: () -> Boolean): Learnt? = synchronized(training) {
        if (examples.count == 0) return null
        val all = examples.all()
        val settings = trainer.suggested(SEED).let { it.copy(batchSize = minOf(it.batchSize, all.count)) }
        val before = trainer.evaluate(all).metric
        val gauge = battery()
        val result = trainer.fit(all, settings, File(folder, "fit")) { goOn() }
        val batches = (result.steps - result.resumedFromStep).toLong()
        energy.spend(Work.ofTraining(cost, result.examples.toLong(), batches), gauge, battery())
        if (result.stopped) {
            goBack() // the checkpoint is taken up only from where the training began
            return null
        }
        trainer.save(state)
        return keep(Learnt(before, trainer.evaluate(all).metric, all.count, inRound = false))
    }

    /** What this device does in a server's rounds: with the same examples, and what it learns there is kept too. */
    fun roundWork(): RoundWork {
        val defaults = bundle.manifest.training
        val each = Work.ofTraining(cost, defaults.batchSize.toLong(), 1).estimatedJ / defaults.batchSize
        return InRounds(TrainerWork(trainer, examples::all, perExampleJ = each))
    }

    override fun close() = synchronized(training) {
        trainer.close()
        bundle.close()
    }

    /** To what was kept last: the end of a training, or the publisher's adapter. */
    private fun goBack() = if (state.exists()) trainer.restore(state) else trainer.loadAdapter(bundle.initialAdapter())

    private fun keep(what: Learnt): Learnt {
        known.writeObject(
            linkedMapOf("before" to what.before, "after" to what.after, "examples" to what.examples.toLong(), "in_round" to what.inRound),
        )
        learnt = what
        return what
    }

    private inner class InRounds(private val work: RoundWork) : RoundWork by work {
        override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained? =
            synchronized(training) {
                val gauge = battery()
                val trained = work.train(adapter, settings, shouldStop) ?: return null
                val examples = trained.measured.examples * settings.epochs
                val batches = settings.epochs * ((trained.measured.examples + settings.batchSize - 1) / settings.batchSize)
                energy.spend(Work.ofTraining(cost, examples, batches), gauge, battery())
                trainer.save(state)
                keep(Learnt(trained.measured.received, trained.trained, trained.measured.examples.toInt(), inRound = true))
                return trained
            }

        override fun evaluate(adapter: Adapter): Measured = synchronized(training) { work.evaluate(adapter) }
    }

    private companion object {
        const val SEED = 0L
    }
}
