package org.rootlet.privacy

import org.rootlet.fleet.ConfigError
import org.rootlet.fleet.RequestRefusedError
import org.rootlet.wire.RawNumber

/**
 * What an accountant charges: this many Gaussian mechanisms, each on a Poisson sample.
 *
 * @property steps how many.
 * @property sampleRate probability with which a unit enters a step.
 * @property noiseMultiplier the noise's standard deviation over the sensitivity.
 * @property maxGradNorm the clipping bound; it does not change what is spent.
 * @property unit what is protected.
 * @property neighbours which data sets are to be told apart.
 */
data class PrivacySpent(
    val steps: Long,
    val sampleRate: Double,
    val noiseMultiplier: Double,
    val maxGradNorm: Double,
    val unit: String,
    val neighbours: String,
) {
    internal fun toFields(): Map<String, Any> = linkedMapOf(
        "steps" to steps, "sample_rate" to sampleRate, "noise_multiplier" to noiseMultiplier,
        "max_grad_norm" to maxGradNorm, "unit" to unit, "neighbours" to neighbours,
    )

    companion object {
        /** What a round spends of a device whose whole update is clipped, one among a known number. */
        fun ofDevice(clipNorm: Double, noiseMultiplier: Double) =
            PrivacySpent(1, 1.0, noiseMultiplier, clipNorm, "device", "zero-out-one")

        internal fun ofFields(fields: Map<*, *>) = PrivacySpent(
            fields["steps"] as Long, number(fields["sample_rate"]), number(fields["noise_multiplier"]),
            number(fields["max_grad_norm"]), fields["unit"] as String, fields["neighbours"] as String,
        )

        private fun number(value: Any?): Double = when (value) {
            is RawNumber -> value.text.toDouble()
            else -> (value as Number).toDouble()
        }
    }
}

/**
 * What a device allows.
 *
 * @property maxEpsilon the most that may be spent in all, of each unit; null for no bound.
 * @property delta at which epsilon is told and bounded.
 * @property minNoiseMultiplier least noise of a private round.
 * @throws ConfigError a value outside its bounds.
 */
data class PrivacyPolicy(val maxEpsilon: Double? = null, val delta: Double = 1e-5, val minNoiseMultiplier: Double = 0.0) {
    init {
        if (!(delta > 0 && delta < 1 && minNoiseMultiplier >= 0)) {
            throw ConfigError("delta $delta, minNoiseMultiplier $minNoiseMultiplier: must lie in 0..1, and be at least 0")
        }
        if (maxEpsilon != null && !(maxEpsilon > 0)) throw ConfigError("maxEpsilon is $maxEpsilon; it must be positive")
    }
}

/**
 * What this device has spent, by its own ledger.
 *
 * @param policy what is allowed.
 * @param ledger the fields of the ledger's entries (`Ledger.read(folder).map { it.fields }`).
 */
class PrivacyAccount(val policy: PrivacyPolicy = PrivacyPolicy(), ledger: List<Map<String, Any?>> = emptyList()) {
    private val spent = ledger.mapNotNull { it[MECHANISM] as? Map<*, *> }.map(PrivacySpent::ofFields).toMutableList()

    /** An upper bound of the epsilon spent of a unit (`device` or `example`); 0 for nothing. */
    @Synchronized
    fun epsilon(unit: String): Double = RenyiPrivacy.epsilonAtMost(spent.filter { it.unit == unit }, policy.delta)

    /**
     * Refuses what is beyond the policy, before anything is trained.
     *
     * @throws RequestRefusedError the value, the bound and what has been spent.
     */
    @Synchronized
    fun require(planned: PrivacySpent) {
        if (planned.noiseMultiplier < policy.minNoiseMultiplier) {
            throw RequestRefusedError(
                "noise_multiplier is ${planned.noiseMultiplier}; this device asks for ${policy.minNoiseMultiplier} at least",
            )
        }
        val most = policy.maxEpsilon ?: return
        val total = with(planned)
        if (total > most) {
            throw RequestRefusedError(
                "this round would bring the device to epsilon ${"%.3f".format(null, total)} at delta ${policy.delta} (per " +
                    "${planned.unit}, ${planned.neighbours}), above its $most: its budget is spent",
            )
        }
    }

    /** Counts what is about to leave; returns what the ledger says of it. */
    @Synchronized
    internal fun charged(more: PrivacySpent): Map<String, Any> {
        val total = with(more)
        spent.add(more)
        return linkedMapOf(
            "epsilon" to Math.rint(total * 1e4) / 1e4, "delta" to policy.delta, "unit" to more.unit,
            "neighbours" to more.neighbours, MECHANISM to more.toFields(),
        )
    }

    private fun with(more: PrivacySpent) = RenyiPrivacy.epsilonAtMost(spent.filter { it.unit == more.unit } + more, policy.delta)

    private companion object {
        const val MECHANISM = "mechanism"
    }
}
