package org.rootlet.device

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.training.Reference

class EnergyTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val full = BatteryReading(50_000_000, 3_000_000, 4000, charging = false)

    @Test
    fun theEstimateIsThatOfThePythonRuntime() {
        for (name in Reference.NAMES) {
            val reference = Reference(name)
            val work = Work.ofTraining(reference.bundle.manifest.cost, 171L * reference.settings.epochs, reference.steps.toLong())
            assertEquals(name, reference.energyJ, work.estimatedJ, 1e-12 * reference.energyJ)
        }
        assertEquals(Work(), Work.ofTraining(emptyMap(), 9, 9))
        assertThrows(IllegalArgumentException::class.java) { Work.ofTraining(emptyMap(), -1, 0) }
    }

    @Test
    fun aFallingGaugeMeasures() {
        assertEquals(3.6, full.copy(energyNwh = 49_000_000).joulesSince(full)!!, 1e-9) // 1 mWh
        val charge = BatteryReading(chargeUah = 3_000_000, voltageMv = 4000, charging = false)
        val later = charge.copy(chargeUah = 2_999_000, voltageMv = 3800)
        assertEquals(14.04, later.joulesSince(charge)!!, 1e-9) // 1 mAh at 3.9 V
    }

    @Test
    fun whatIsNotMeasuredIsNotToldAsMeasured() {
        val drained = full.copy(energyNwh = 49_000_000)
        assertNull("charging at the end", drained.copy(charging = true).joulesSince(full))
        assertNull("charging at the start", drained.joulesSince(full.copy(charging = null)))
        assertNull("below the grain", full.joulesSince(full))
        assertNull("a gauge that rises", full.joulesSince(drained))
        assertNull("no gauge", BatteryReading(charging = false).joulesSince(BatteryReading(charging = false)))
        val noVoltage = BatteryReading(chargeUah = 2, charging = false)
        assertNull("no voltage", noVoltage.copy(chargeUah = 1).joulesSince(noVoltage))
    }

    @Test
    fun measuredAndEstimatedAreKeptApartAndKept() {
        val file = folder.root.resolve("energy.json")
        val account = EnergyAccount(file)
        val work = Work(macsFloat32 = 1_000_000_000)
        account.spend(work, full, full.copy(energyNwh = 49_000_000))
        account.spend(work, BatteryReading(), BatteryReading())
        account.spend(work, BatteryReading(), BatteryReading())
        val expected = EnergySpent(3.6, 2 * work.estimatedJ)
        assertEquals(expected, account.spent)
        assertEquals(expected, EnergyAccount(file).spent)
        assertEquals("Energy of training: 3.6 J measured by the battery's gauge (the whole phone); and 23.2 mJ estimated from the operations (arithmetic and memory alone).", Words.energy(expected))
        for (damage in listOf("{", "{}", "[1]")) {
            file.writeText(damage)
            assertEquals(damage, EnergySpent(), EnergyAccount(file).spent)
        }
    }
}
