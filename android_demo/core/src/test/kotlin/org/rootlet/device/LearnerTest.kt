package org.rootlet.device

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNotEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.DataError
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.fleet.NpyArray
import org.rootlet.fleet.TrainSettings
import org.rootlet.training.Reference

/** Devices of the tests: the reference's bundle, and its examples to teach. */
class Taught(val folder: File) {
    private val reference = Reference("demo")

    fun bundle(): Bundle {
        val publisher = File(reference.folder, "publisher.hex").readText()
        return Bundle.load(File(reference.folder, "digits.rootlet"), listOf(PublicKey.ofHex(publisher)))
    }

    fun learner(battery: () -> BatteryReading = { BatteryReading() }) = Learner(bundle(), folder, battery = battery)

    fun example(number: Int): FloatArray = reference.x.copyOfRange(64 * number, 64 * (number + 1))

    /** Teaches the first [count] examples. */
    fun teach(learner: Learner, count: Int = COUNT) {
        for (number in 0 until count) learner.examples.add(example(number), reference.labels[number])
    }

    companion object {
        const val COUNT = 48
    }
}

class LearnerTest {
    @get:Rule
    val temporary = TemporaryFolder()

    private val taught by lazy { Taught(temporary.root) }

    @Test
    fun whatWasTaughtAndLearntIsThereAgain() {
        val odds = taught.learner().use { learner ->
            assertNull(learner.learnt)
            assertNull(learner.train { true }) // there is nothing to learn from
            taught.teach(learner)
            val learnt = learner.train { true }!!
            assertTrue("$learnt", learnt.after > learnt.before + 0.2)
            assertEquals(Taught.COUNT, learnt.examples)
            assertTrue(learner.energy.spent.let { it.estimatedJ > 0 && it.measuredJ == 0.0 })
            learner.predict(taught.example(0))
        }
        taught.learner().use { again ->
            assertArrayEquals(odds, again.predict(taught.example(0)), 0f)
            assertEquals(Taught.COUNT, again.examples.countByClass.sum())
            assertTrue(Words.knows(again.learnt), "on the 48 drawings that it learnt from" in Words.knows(again.learnt))
            assertEquals("", again.forgotten)
        }
    }

    @Test
    fun anInterruptedTrainingIsTakenUp() {
        taught.learner().use { learner ->
            taught.teach(learner)
            val before = learner.predict(taught.example(0))
            var first = 0
            assertNull(learner.train { ++first < 4 })
            assertNull(learner.learnt)
            assertArrayEquals(before, learner.predict(taught.example(0)), 0f)
            var second = 0
            learner.train { ++second > 0 }
            assertEquals(9, first + second) // three epochs of three batches
        }
    }

    @Test
    fun aBatteryThatDrainsMeasuresATraining() {
        var left = 50_000_000L
        val battery = { BatteryReading(energyNwh = left.also { left -= 1_000_000 }, charging = false) }
        taught.learner(battery).use { learner ->
            taught.teach(learner)
            learner.train { true }
            assertEquals(EnergySpent(3.6, 0.0).measuredJ, learner.energy.spent.measuredJ, 1e-9)
            assertEquals(0.0, learner.energy.spent.estimatedJ, 0.0)
        }
    }

    @Test
    fun aRoundTeachesThePhoneToo() {
        val odds = taught.learner().use { learner ->
            taught.teach(learner)
            val adapter = taught.bundle().use { bundle ->
                bundle.initialAdapter().mapValues { (_, tensor) -> NpyArray.of(tensor.shape.map { it.toInt() }, tensor.values) }
            }
            val before = learner.predict(taught.example(0))
            assertNull(learner.roundWork().train(adapter, TrainSettings(1, 2, 16, 0.02)) { true })
            assertArrayEquals(before, learner.predict(taught.example(0)), 0f) // interrupted: as it was
            val trained = learner.roundWork().train(adapter, TrainSettings(1, 2, 16, 0.02)) { false }!!
            assertEquals(Learnt(trained.measured.received, trained.trained, Taught.COUNT, inRound = true), learner.learnt)
            assertTrue(trained.energyJ > 0)
            learner.predict(taught.example(0)).also { assertNotEquals(before.toList(), it.toList()) }
        }
        taught.learner().use { assertArrayEquals(odds, it.predict(taught.example(0)), 0f) }
    }

    @Test
    fun whatIsNoExampleIsNotKept() {
        taught.learner().use { learner ->
            assertThrows(DataError::class.java) { learner.examples.add(FloatArray(64), 10) }
            assertThrows(DataError::class.java) { learner.examples.add(FloatArray(63), 1) }
            assertThrows(DataError::class.java) { learner.examples.add(FloatArray(64) { Float.NaN }, 1) }
            assertEquals("No drawings are kept.", Words.taught(learner.examples.countByClass))
        }
    }

    @Test
    fun damageIsToldAndSurvived() {
        taught.learner().use {
            taught.teach(it)
            it.train { true }
        }
        temporary.root.resolve("trainer").writeBytes(ByteArray(9))
        taught.learner().use { learner ->
            assertTrue(learner.forgotten, "starts anew" in learner.forgotten)
            assertTrue(learner.train { true }!!.let { it.after > it.before + 0.2 })
        }
        temporary.root.resolve("examples.safetensors").writeBytes(ByteArray(9))
        val error = assertThrows(DataError::class.java) { taught.learner() }
        assertTrue(error.message, "erase it, and draw anew" in error.message!!)
    }
}
