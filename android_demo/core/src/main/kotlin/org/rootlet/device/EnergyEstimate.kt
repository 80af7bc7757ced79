package org.rootlet.device

/**
 * What training is *estimated* to cost, where no meter can be read: the table of `rootlet_runtime.energy`, from
 * M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9, at 45 nm.
 *
 *     pJ = macs_int8 (0.2 + 0.1) + macs_float32 (3.7 + 0.9) + 0.1 (macs) 70 + bytes 1300 / 8
 *
 * Use it to compare two trainings, not to size a battery: a whole phone needs more.
 *
 * @param cost the manifest's: multiply-accumulates for each example, and `weight_bytes` for each batch.
 */
class EnergyEstimate(private val cost: Map<String, Long>) {
    /** Joules of training on so many examples in so many batches, estimated. */
    fun training(examples: Long, batches: Long): Double = joules("train", examples, batches)

    /** Joules of predicting or measuring so many examples in so many batches, estimated. */
    fun predicting(examples: Long, batches: Long): Double = joules("predict", examples, batches)

    private fun joules(what: String, examples: Long, batches: Long): Double {
        val int8 = of("${what}_macs_int8") * examples
        val float32 = of("${what}_macs_float32") * examples
        val instructions = INSTRUCTIONS_PER_MAC * (int8 + float32)
        return (int8 * PJ_INT8 + float32 * PJ_FLOAT32 + instructions * PJ_INSTRUCTION + of("weight_bytes") * batches * PJ_BYTE) * 1e-12
    }

    private fun of(name: String): Double = (cost[name] ?: 0).toDouble()

    private companion object {
        const val PJ_INT8 = 0.2 + 0.1
        const val PJ_FLOAT32 = 3.7 + 0.9
        const val PJ_BYTE = 1300.0 / 8
        const val PJ_INSTRUCTION = 70.0
        const val INSTRUCTIONS_PER_MAC = 0.1
    }
}
