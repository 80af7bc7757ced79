package org.rootlet.device

/**
 * Counted operations, and what they are estimated to cost: the table of the Python runtime's `energy.py`
 * (M. Horowitz, ISSCC 2014, figure 1.1.9, at 45 nm).
 *
 * Today's chips need less for arithmetic, and a whole phone needs more; use the figure to compare two trainings, not
 * to size a battery.
 *
 * @property macsInt8 multiply-accumulates of 8-bit integers.
 * @property macsFloat32 multiply-accumulates in float32.
 * @property bytesMoved bytes of weights read from memory.
 */
data class Work(val macsInt8: Long = 0, val macsFloat32: Long = 0, val bytesMoved: Long = 0) {
    /** Joules by the table. */
    val estimatedJ: Double get() {
        val instructions = Math.rint((macsInt8 + macsFloat32) * INSTRUCTIONS_PER_MAC)
        val picojoules = macsInt8 * PJ_PER_MAC_INT8 + macsFloat32 * PJ_PER_MAC_FLOAT32 + instructions * PJ_PER_INSTRUCTION
        return (picojoules + bytesMoved * PJ_PER_DRAM_BYTE) * 1e-12
    }

    companion object {
        private const val PJ_PER_MAC_INT8 = 0.2 + 0.1
        private const val PJ_PER_MAC_FLOAT32 = 3.7 + 0.9
        private const val PJ_PER_DRAM_BYTE = 1300 / 8.0
        private const val PJ_PER_INSTRUCTION = 70.0
        private const val INSTRUCTIONS_PER_MAC = 0.1

        /**
         * The work of training on [examples] in so many [batches].
         *
         * @param cost the manifest's; what is absent counts as 0.
         */
        fun ofTraining(cost: Map<String, Long>, examples: Long, batches: Long): Work {
            require(examples >= 0 && batches >= 0) { "examples $examples and batches $batches: must not be negative" }
            return Work(
                examples * (cost["train_macs_int8"] ?: 0),
                examples * (cost["train_macs_float32"] ?: 0),
                batches * (cost["weight_bytes"] ?: 0),
            )
        }
    }
}

/**
 * What the battery's own gauge tells at one moment; null where this phone has no such gauge.
 *
 * @property energyNwh what is left in the battery, in nanowatt-hours.
 * @property chargeUah what is left in the battery, in microampere-hours.
 * @property voltageMv the battery's voltage, in millivolts.
 * @property charging whether anything charges it.
 */
data class BatteryReading(
    val energyNwh: Long? = null,
    val chargeUah: Long? = null,
    val voltageMv: Long? = null,
    val charging: Boolean? = null,
) {
    /**
     * Joules that left the battery, for the whole phone, since [before].
     *
     * Null where that was not measured: no gauge, a charger at either end, or a content that did not fall (the grain
     * is coarse, and a short training is below it).
     */
    fun joulesSince(before: BatteryReading): Double? {
        if (charging != false || before.charging != false) return null
        val energy = fallen(before.energyNwh, energyNwh)?.let { it * J_PER_NWH }
        return (energy ?: chargeSince(before))?.takeIf { it > 0 }
    }

    private fun chargeSince(before: BatteryReading): Double? {
        val charge = fallen(before.chargeUah, chargeUah) ?: return null
        val millivolts = (voltageMv ?: return null) + (before.voltageMv ?: return null)
        return charge * 1e-6 * S_PER_HOUR * millivolts / 2 * 1e-3
    }

    private fun fallen(before: Long?, after: Long?): Long? = if (before == null || after == null) null else before - after

    private companion object {
        const val S_PER_HOUR = 3600.0
        const val J_PER_NWH = 1e-9 * S_PER_HOUR
    }
}
