package org.rootlet.training

import kotlin.math.PI
import kotlin.math.ceil
import kotlin.math.cos

/**
 * The learning rate over the steps of a fit: warm-up, then decay.
 *
 * With S steps, W = ceil(warmup S) of them warm-up, and step i counted from 0, the rate is the given one
 * times (i + 1) / (W + 1) for i < W, and then 1 (`constant`), 1 - j / n (`linear`) or
 * (1 + cos(pi j / n)) / 2 (`cosine`), with j = i - W and n = S - W. It is never 0, and a pure function
 * of the step: a resumed fit goes on with the same bits.
 */
data class RateSchedule(val decay: String = "linear", val warmup: Double = 0.1) {
    init {
        require(decay in DECAYS) { "decay '$decay': must be one of $DECAYS" }
        require(warmup in 0.0..0.5) { "warmup $warmup: must lie in 0..0.5" }
    }

    /** What the learning rate is multiplied by at [step], in (0, 1]. */
    fun factor(step: Int, steps: Int): Double {
        require(step in 0 until steps) { "step $step: must lie in 0..${steps - 1}" }
        val rising = ceil(warmup * steps).toInt()
        if (step < rising) return (step + 1).toDouble() / (rising + 1)
        val done = (step - rising).toDouble() / (steps - rising)
        return when (decay) {
            "linear" -> 1 - done
            "cosine" -> (1 + cos(PI * done)) / 2
            else -> 1.0
        }
    }

    companion object {
        val DECAYS = listOf("constant", "linear", "cosine")
        val CONSTANT = RateSchedule("constant", 0.0)
    }
}
