package org.rootlet.training

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.CheckpointError
import org.rootlet.DataError

class ReplayTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun filled(reference: Reference, selection: Selection, between: (ReplayBuffer) -> ReplayBuffer = { it }): ReplayBuffer {
        val buffer = ReplayBuffer(reference.bundle.manifest, CAPACITY, selection)
        buffer.add(reference.part(0, 60), 3)
        return between(buffer).also { it.add(reference.part(60, 100), 4) }
    }

    private fun held(buffer: ReplayBuffer, reference: Reference): FloatArray {
        val all = buffer.after(reference.part(0, 1))
        return FloatArray(64 * buffer.size) { all.x.getFloat(4 * (64 + it)) }
    }

    @Test
    fun aBufferKeepsWhatPythonsKeeps() {
        val reference = Reference("demo")
        for (selection in Selection.values()) {
            val buffer = filled(reference, selection)
            assertEquals(CAPACITY, buffer.size)
            assertArrayEquals(reference.replay.getValue(selection.wire).values, held(buffer, reference), 0f)
        }
    }

    @Test
    fun aFitThatReplaysAgreesWithThePythonRuntime() {
        for (name in listOf("demo", "adam")) {
            val reference = Reference(name)
            val buffer = filled(reference, Selection.CLASS_BALANCED)
            val losses = ArrayList<Float>()
            Trainer(reference.bundle).use { trainer ->
                val settings = reference.settings.copy(epochs = 5, learningRate = 0.01, schedule = RateSchedule("constant", 0.1))
                trainer.fit(reference.part(100, 171), settings, replay = Replay(buffer, 0.4)) { losses.add(it.loss) }
                assertArrayEquals(name, reference.replay.getValue("losses").values, losses.toFloatArray(), 1e-4f)
                val expected = reference.replay.filterKeys { it.startsWith("adapter/") }.mapKeys { it.key.removePrefix("adapter/") }
                assertTrue(name, Reference.distance(trainer.adapter(), expected) <= 1e-4)
            }
            assertArrayEquals(reference.replay.getValue("uses").values, buffer.uses().map { it.toFloat() }.toFloatArray(), 0f)
        }
    }

    @Test
    fun aBufferThatWasSavedGoesOnAsIfItHadNotBeen() {
        val reference = Reference("demo")
        for (selection in Selection.values()) {
            val file = File(folder.root, selection.wire)
            val again = filled(reference, selection) { first ->
                first.save(file)
                ReplayBuffer(reference.bundle.manifest, CAPACITY, selection).also { assertTrue(it.restore(file)) }
            }
            assertArrayEquals(held(filled(reference, selection), reference), held(again, reference), 0f)
            val other = ReplayBuffer(reference.bundle.manifest, CAPACITY + 1, selection)
            assertThrows(CheckpointError::class.java) { other.restore(file) }
            file.writeBytes(file.readBytes().also { it[50] = (it[50] + 1).toByte() })
            assertThrows(CheckpointError::class.java) { again.restore(file) }
        }
        assertFalse(ReplayBuffer(reference.bundle.manifest, CAPACITY, Selection.UNIFORM).restore(File(folder.root, "absent")))
    }

    @Test
    fun theFileStaysUnderItsQuota() {
        val reference = Reference("demo")
        for (selection in Selection.values()) {
            val buffer = ReplayBuffer(reference.bundle.manifest, 10_000L, selection)
            buffer.add(reference.part(0, 171), 1)
            val file = File(folder.root, "quota-${selection.wire}")
            buffer.save(file)
            assertTrue("${file.length()} bytes, ${buffer.size} held", file.length() <= 10_000 && file.length() > 9_000)
            buffer.clear()
            assertEquals(0, buffer.size)
        }
        assertThrows(DataError::class.java) { ReplayBuffer(reference.bundle.manifest, 100L) }
        assertThrows(DataError::class.java) { Replay(filled(reference, Selection.UNIFORM), 1.0) }
    }

    @Test
    fun aCancelledFitWithReplayEndsWithTheSameBits() {
        val reference = Reference("demo")
        val settings = reference.settings.copy(epochs = 5)
        val whole = Trainer(reference.bundle).use {
            it.fit(reference.part(100, 171), settings, replay = Replay(filled(reference, Selection.UNIFORM)))
            it.adapter()
        }
        val file = File(folder.root, "fit")
        val buffer = filled(reference, Selection.UNIFORM)
        Trainer(reference.bundle).use { it.fit(reference.part(100, 171), settings, file, Replay(buffer)) { step -> step.step < 9 } }
        assertTrue(buffer.uses().all { it == 0 })
        Trainer(reference.bundle).use {
            assertEquals(9, it.fit(reference.part(100, 171), settings, file, Replay(buffer)).resumedFromStep)
            assertEquals(0.0, Reference.distance(whole, it.adapter()), 0.0)
        }
        assertTrue(buffer.uses().all { it > 0 })
    }

    private companion object {
        const val CAPACITY = 24
    }
}
