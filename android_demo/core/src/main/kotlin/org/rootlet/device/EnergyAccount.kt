package org.rootlet.device

import java.io.File
import org.rootlet.wire.StrictJsonError

/** Joules of all trainings so far, by how they were found. */
data class EnergySpent(val measuredJ: Double = 0.0, val estimatedJ: Double = 0.0)

/**
 * What training has spent on this phone: what its battery's gauge measured and what was estimated, never mixed. The
 * radio, and measuring an adapter before and after a training, are not counted.
 *
 * @param file where it is kept; one that is damaged counts as absent.
 */
class EnergyAccount(file: File) {
    private val file = PrivateFile(file)

    /** So far. */
    var spent: EnergySpent = restored()
        private set

    /** Counts one training: what was measured between two readings, else what its [work] is estimated to cost. */
    @Synchronized
    fun spend(work: Work, before: BatteryReading, after: BatteryReading) {
        val measured = after.joulesSince(before)
        spent = if (measured == null) {
            spent.copy(estimatedJ = spent.estimatedJ + work.estimatedJ)
        } else {
            spent.copy(measuredJ = spent.measuredJ + measured)
        }
        file.writeObject(linkedMapOf("measured_j" to spent.measuredJ, "estimated_j" to spent.estimatedJ))
    }

    private fun restored(): EnergySpent = try {
        file.readObject()?.let { EnergySpent(it.double("measured_j"), it.double("estimated_j")) } ?: EnergySpent()
    } catch (_: StrictJsonError) {
        EnergySpent()
    }
}
