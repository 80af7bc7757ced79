package org.rootlet.fleet

import org.rootlet.AdapterError
import org.rootlet.DivergedError
import org.rootlet.NonFiniteLossError
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.privacy.PrivacySpent
import org.rootlet.secagg.SecureParticipation
import org.rootlet.secagg.SecureUpdate
import org.rootlet.secagg.StageMessage

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
 * Answers rootlet's requests: rounds of plain averaging, the stages of secure aggregation, and rounds that protect
 * the device by differential privacy. All others are refused with an error that says why; the device goes on after.
 *
 * @param limits bounds on what a server may ask for.
 * @param secure answers the stages of secure rounds; null where the device is not enrolled.
 * @param account what private rounds may spend, and have.
 * @param onFailure told of what the server is not: the failure itself, for the device's own log.
 */
class Participant(
    private val work: RoundWork,
    private val limits: RoundLimits = RoundLimits(),
    private val secure: SecureParticipation? = null,
    private val account: PrivacyAccount = PrivacyAccount(),
    private val onFailure: (Exception) -> Unit = {},
) : Answerer {
    override fun answer(request: FleetRequest, shouldStop: () -> Boolean): Answer? = try {
        answered(request, shouldStop)
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

    private fun answered(request: FleetRequest, shouldStop: () -> Boolean): Answer? = when {
        request.messageType == QUERY && SECURE in request.records -> enrolled().answer(StageMessage.request(request.records))
        request.messageType == TRAIN -> train(request, shouldStop)
        request.messageType == EVALUATE -> {
            requireOpen("its figures")
            val asked = EvaluateRequest.of(request.records)
            checkBundle(asked)
            Answer(work.evaluate(asked.adapter).toRecords(work.metric))
        }
        else -> throw RequestRefusedError(
            "message type ${repr(request.messageType).take(80)} is unknown; this device answers '$TRAIN', '$EVALUATE' and " +
                "the stages of secure rounds",
        )
    }

    private fun train(request: FleetRequest, shouldStop: () -> Boolean): Answer? {
        val stage = uploadStage(request)
        val terms = PrivacyTerms.of(request.records)
        val asked = TrainRequest.of(request.records - setOf(SECURE, PrivacyTerms.PRIVACY))
        checkBundle(asked.asked)
        checkBounds(asked.settings)
        val planned = planned(stage, terms)
        val received = asked.asked.adapter
        val trained = work.train(received, asked.settings, shouldStop) ?: return null
        return when {
            stage != null -> enrolled().upload(stage, SecureUpdate.difference(trained.adapter, received)).charging(planned)
            terms != null -> terms.clippedAnswer(trained.adapter, received).charging(planned)
            else -> Answer(trained.toRecords(work.metric, request.bytes))
        }
    }

    /** What the round will spend, which the policy allows; null for one without privacy. */
    private fun planned(stage: StageMessage?, terms: PrivacyTerms?): PrivacySpent? {
        val plan = stage?.let(enrolled()::plan)
        val noise = plan?.noise
        if (stage != null && terms != null) {
            throw RequestRefusedError(
                "the request asks for privacy by device beside the secure round's own: one account cannot hold both; noise " +
                    "by device belongs in the round's plan",
            )
        }
        val spent = when {
            noise != null -> PrivacySpent.ofDevice(noise.clipNorm, noise.noiseMultiplier(plan.values))
            terms != null -> PrivacySpent.ofDevice(terms.maxNorm, terms.noiseMultiplier)
            else -> return null
        }
        account.require(spent)
        return spent
    }

    /** The secure round that an update is for; null where it travels in clear. */
    private fun uploadStage(request: FleetRequest): StageMessage? {
        if (SECURE !in request.records) {
            requireOpen("its update")
            return null
        }
        return StageMessage.request(request.records).also { enrolled().plan(it) } // refused before anything is trained
    }

    private fun enrolled(): SecureParticipation = secure
        ?: throw RequestRefusedError("this device is not enrolled, and takes part in no secure round: run rootlet enrol")

    private fun requireOpen(what: String) {
        if (secure?.policy?.required == true) {
            throw RequestRefusedError(
                "this device sends $what by secure aggregation only: ask by a secure round, or set required=false in its " +
                    "SecurePolicy",
            )
        }
    }

    private fun Answer.charging(spent: PrivacySpent?) = Answer(records, error, code, spent)

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
        const val SECURE = StageMessage.SECURE

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
