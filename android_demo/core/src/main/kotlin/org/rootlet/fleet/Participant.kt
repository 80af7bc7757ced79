package org.rootlet.fleet

import java.security.SecureRandom
import org.rootlet.AdapterError
import org.rootlet.RootletException
import org.rootlet.training.Examples
import org.rootlet.training.FitSettings
import org.rootlet.training.RateSchedule
import org.rootlet.training.Trainer

/** The most that a server may ask for in one round; the batch is bounded by the bundle. */
class RoundLimits(val epochs: Int = 20, val learningRate: Double = 10.0)

/**
 * Answers a server's requests with a trainer and the device's own examples.
 *
 * A request that is refused or fails is answered with an error that says why, and the trainer has the adapter from
 * before. After a successful training it holds the trained one; measuring leaves it as it was. It takes part in
 * plain rounds: it answers requests for secure aggregation or privacy with a refusal.
 *
 * @param train the examples to train on, at least one.
 * @param holdout those to measure on; null to measure on the training ones.
 * @param perExampleJ estimated energy of training on one example, in joules; measured nowhere here.
 */
class Participant(
    private val trainer: Trainer,
    private val train: () -> Examples,
    private val holdout: () -> Examples? = { null },
    private val limits: RoundLimits = RoundLimits(),
    private val perExampleJ: Double = 0.0,
) : Answering {
    private val random = SecureRandom()
    private val metric = if (trainer.bundle.manifest.classifies) "accuracy" else "error"

    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        val before = trainer.adapter()
        var kept = false
        try {
            return when (request.messageType) {
                RoundProtocol.TRAIN -> trained(request, shouldStop).also { kept = it != null }
                RoundProtocol.EVALUATE -> evaluated(request)
                else -> throw RequestRefusedError("message type '${request.messageType.take(80)}' is unknown")
            }
        } catch (error: RecordError) {
            return Answer(emptyMap(), error.message ?: "malformed", RoundProtocol.ERROR_MALFORMED)
        } catch (error: RequestRefusedError) {
            return Answer(emptyMap(), error.message ?: "refused", RoundProtocol.ERROR_REFUSED)
        } catch (error: AdapterError) {
            return Answer(emptyMap(), error.message ?: "refused", RoundProtocol.ERROR_REFUSED)
        } catch (error: RootletException) { // its text may hold labels or values: the device's own log says more
            return Answer(emptyMap(), "${error.javaClass.simpleName}: this device's own log says more", RoundProtocol.ERROR_FAILED)
        } finally {
            if (!kept) trainer.loadAdapter(before)
        }
    }

    private fun trained(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        val asked = RoundProtocol.read(trainer.bundle, request)
        bounded("epochs", asked.epochs.toDouble(), limits.epochs.toDouble())
        bounded("batch_size", asked.batchSize.toDouble(), trainer.bundle.manifest.maxBatch.toDouble())
        bounded("learning_rate", asked.learningRate, limits.learningRate)
        val examples = train()
        val measured = holdout() ?: examples
        trainer.loadAdapter(asked.adapter)
        val received = trainer.evaluate(measured)
        val settings = FitSettings(
            asked.epochs, asked.batchSize, asked.learningRate, random.nextLong() ushr 1, RateSchedule("constant", 0.1),
        )
        val started = System.nanoTime()
        val result = trainer.fit(examples, settings) { !shouldStop() }
        if (result.stopped) return null
        val seconds = (System.nanoTime() - started) / 1e9
        val arrays = Record.Arrays(trainer.adapter())
        val metrics = linkedMapOf<String, Any>(
            "num-examples" to examples.count.toLong(),
            "loss" to result.loss,
            "${metric}_received" to received.metric,
            "${metric}_trained" to trainer.evaluate(measured).metric,
            "train_s" to seconds,
            "energy_estimated_j" to perExampleJ * result.examples,
            "bytes_down" to request.bytes,
            "bytes_up" to ObjectSet().also { it.addRecord(arrays) }.contents.values.sumOf { it.size.toLong() },
        )
        return Answer(mapOf("arrays" to arrays, "metrics" to Record.Metrics(metrics)))
    }

    private fun evaluated(request: FleetRequest): Answer {
        val asked = RoundProtocol.read(trainer.bundle, request)
        trainer.loadAdapter(asked.adapter)
        val result = trainer.evaluate(holdout() ?: train())
        val metrics = linkedMapOf<String, Any>(
            "num-examples" to result.examples.toLong(), "loss" to result.loss, "${metric}_received" to result.metric,
        )
        return Answer(mapOf("metrics" to Record.Metrics(metrics)))
    }

    private fun bounded(name: String, value: Double, bound: Double) {
        if (value > bound) throw RequestRefusedError("$name is $value; this device accepts at most $bound")
    }
}
