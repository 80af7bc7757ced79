package org.rootlet.fleet

import org.rootlet.AdapterError
import org.rootlet.DivergedError
import org.rootlet.NonFiniteLossError

/**
 * What a device does in a round, by its engine and its own examples.
 *
 * Both calls may throw: [RequestRefusedError] or [AdapterError] for what the device does not accept, and
 * anything else for a failure, of which the server is told the class only. After a throw or null the
 * device must have the adapter that it had before; [evaluate] leaves it as it was.
 */
interface RoundWork {
    /** The bundle that this device runs. */
    val bundle: BundleIdentity

    /** What its task is measured by. */
    val metric: Metric

    /** Examples of one step that the bundle's graphs take. */
    val maxBatch: Long

    /** Trains [adapter] on this device's examples; null where [shouldStop] interrupted it. */
    fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained?

    /** Measures [adapter] on this device's held-out examples. */
    fun evaluate(adapter: Adapter): Measured
}

/**
 * The most that a server may ask for in one round; the batch is bounded by the bundle.
 *
 * @property epochs passes over the examples.
 * @property learningRate step size.
 */
data class RoundLimits(val epochs: Long = 20, val learningRate: Double = 10.0) {
    init {
        if (epochs < 1 || !(learningRate > 0)) throw ConfigError("$this: epochs >= 1 and learningRate > 0 are needed")
    }
}

/**
 * Answers rootlet's requests of plain averaging, and refuses all others with an error that says why; the
 * device goes on after both.
 *
 * @param limits bounds on what a server may ask for.
 * @param onFailure told of what the server is not: the failure itself, for the device's own log.
 */
class Participant(
    private val work: RoundWork,
    private val limits: RoundLimits = RoundLimits(),
    private val onFailure: (Exception) -> Unit = {},
) : Answerer {
    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? = try {
        records(request, shouldStop)?.let { Answer(it) }
    } catch (error: RecordError) {
        Answer(emptyMap(), "${error.message}", ERROR_MALFORMED)
    } catch (error: RequestRefusedError) {
        Answer(emptyMap(), "${error.message}", ERROR_REFUSED)
    } catch (error: AdapterError) {
        Answer(emptyMap(), "${error.message}", ERROR_REFUSED)
    } catch (error: Exception) { // the app's data or the engine: the device must live on
        onFailure(error)
        Answer(emptyMap(), reason(error), ERROR_FAILED)
    }

    private fun records(request: FleetRequest, shouldStop: () -> Boolean): Records? {
        if (SECURE in request.records && request.messageType in setOf(TRAIN, QUERY)) {
            throw RequestRefusedError("this device is not enrolled, and takes part in no secure round: run rootlet enrol")
        }
        return when (request.messageType) {
            TRAIN -> train(request, shouldStop)
            EVALUATE -> {
                val asked = EvaluateRequest.of(request.records)
                checkBundle(asked)
                work.evaluate(asked.adapter).toRecords(work.metric)
            }
            else -> throw RequestRefusedError(
                "message type ${repr(request.messageType).take(80)} is unknown; this device answers '$TRAIN' and '$EVALUATE'",
            )
        }
    }

    private fun train(request: FleetRequest, shouldStop: () -> Boolean): Records? {
        if (PRIVACY in request.records) {
            // Answered with a plain update, the round would promise a privacy that it does not have.
            throw RequestRefusedError("the request asks for a private round, which this device does not take part in")
        }
        val asked = TrainRequest.of(request.records)
        checkBundle(asked.asked)
        checkBounds(asked.settings)
        return work.train(asked.asked.adapter, asked.settings, shouldStop)?.toRecords(work.metric, request.bytes)
    }

    private fun checkBundle(asked: EvaluateRequest) {
        val (named, own) = asked.bundle to work.bundle
        if (named.manifestSha256 == own.manifestSha256) return
        throw RequestRefusedError(
            "the request is for bundle ${named.name} ${named.version} (${named.manifestSha256.take(12)}…); this device " +
                "runs ${own.name} ${own.version} (${own.manifestSha256.take(12)}…): install the same bundle on both sides",
        )
    }

    private fun checkBounds(asked: TrainSettings) {
        val bounds = listOf(
            Triple("epochs", asked.epochs, limits.epochs),
            Triple("learning_rate", asked.learningRate, limits.learningRate),
            Triple("batch_size", asked.batchSize, work.maxBatch),
        )
        for ((name, value, bound) in bounds) {
            if (value.toDouble() > bound.toDouble()) {
                throw RequestRefusedError(
                    "$name is $value; this device accepts at most $bound: ask for less, or raise the device's limit",
                )
            }
        }
    }

    private companion object {
        const val TRAIN = "train"
        const val EVALUATE = "evaluate"
        const val QUERY = "query"
        const val SECURE = "secure"
        const val PRIVACY = "privacy"

        /** What the server is told of a failure: other texts may hold paths, labels or values. */
        fun reason(error: Exception): String {
            val name = error.javaClass.simpleName.ifEmpty { "Exception" }
            return when (error) {
                is NonFiniteLossError -> "$name: ${error.message}"
                // Its own text tells accuracies.
                is DivergedError -> "$name: training made the adapter worse; lower the learning rate"
                else -> "$name: this device's own log says more"
            }
        }
    }
}
