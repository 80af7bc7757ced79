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
import org.rootlet.bundle.TensorSpec

class ReplayTest {
    @get:Rule
    val folder = TemporaryFolder()

    private fun empty(reference: Reference, selection: Selection, storage: Storage = Storage.UINT8, examples: Int = KEPT): ReplayBuffer {
        val settings = ReplaySettings(0, selection, storage)
        return ReplayBuffer(reference.bundle.manifest, settings.copy(quotaBytes = ReplayBuffer.quotaBytes(reference.bundle.manifest, settings, examples)))
    }

    private fun filled(
        reference: Reference,
        selection: Selection,
        storage: Storage = Storage.UINT8,
        between: (ReplayBuffer) -> ReplayBuffer = { it },
    ): ReplayBuffer = Trainer(reference.bundle).use { trainer ->
        val buffer = empty(reference, selection, storage)
        trainer.remember(buffer, reference.part(0, 60), 3)
        between(buffer).also { trainer.remember(it, reference.part(60, 100), 4) }
    }

    /** The rows held, decoded. */
    private fun held(buffer: ReplayBuffer, reference: Reference): FloatArray {
        val width = reference.bundle.manifest.learnsFrom.elements.toInt()
        val none = Examples(1, Examples.direct(width, 4), Examples.direct(1, 8))
        val all = buffer.after(none)
        return FloatArray(width * buffer.size) { all.x.getFloat(4 * (width + it)) }
    }

    @Test
    fun aBufferKeepsWhatPythonsKeepsUnderTheSameQuota() {
        for (name in Reference.NAMES) {
            val reference = Reference(name)
            for (selection in Selection.values()) for (storage in Storage.values()) {
                val buffer = filled(reference, selection, storage)
                assertEquals(KEPT, buffer.size)
                val expected = reference.replay.getValue("${selection.wire}/${storage.wire}").values
                val tolerance = if (name == "latent") 1e-4f else 0f // latents are another build's
                assertArrayEquals("$name $selection $storage", expected, held(buffer, reference), tolerance)
            }
        }
    }

    @Test
    fun aFitThatReplaysAgreesWithThePythonRuntime() {
        for (name in Reference.NAMES) {
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
                empty(reference, selection).also { assertTrue(it.restore(file)) }
            }
            assertArrayEquals(held(filled(reference, selection), reference), held(again, reference), 0f)
            for (other in listOf(empty(reference, selection, examples = KEPT + 1), empty(reference, selection, Storage.EXACT))) {
                assertThrows(CheckpointError::class.java) { other.restore(file) }
                assertEquals(0, other.size)
            }
            file.writeBytes(file.readBytes().also { it[50] = (it[50] + 1).toByte() })
            assertThrows(CheckpointError::class.java) { again.restore(file) }
        }
        assertFalse(empty(reference, Selection.UNIFORM).restore(File(folder.root, "absent")))
    }

    @Test
    fun theFileStaysUnderItsQuota() {
        val reference = Reference("demo")
        val manifest = reference.bundle.manifest
        Trainer(reference.bundle).use { trainer ->
            for (selection in Selection.values()) for (storage in Storage.values()) {
                val buffer = ReplayBuffer(manifest, ReplaySettings(9_000, selection, storage))
                trainer.remember(buffer, reference.part(0, 171), 1)
                assertEquals(buffer.capacity, buffer.size)
                val file = File(folder.root, "quota")
                buffer.save(file)
                assertTrue("${file.length()} bytes, ${buffer.size} held", file.length() in 4_500..9_000)
                buffer.clear()
                assertEquals(0, buffer.size)
            }
        }
        assertThrows(DataError::class.java) { ReplayBuffer(manifest, ReplaySettings(4_000)) }
        assertThrows(DataError::class.java) { Replay(filled(reference, Selection.UNIFORM), 1.0) }
    }

    @Test
    fun halfPrecisionRoundsAsNumPyDoes() {
        val codec = RowCodec(TensorSpec("x", "float32", listOf(null, 1)), Storage.FLOAT16)
        fun kept(value: Float): Float {
            val plain = Examples.direct(1, 4).putFloat(0, value)
            return Examples.direct(1, 4).also { codec.decode(codec.encode(plain, 1), 0, it) }.getFloat(0)
        }
        val known = mapOf( // np.float32(np.float16(value))
            0f to 0f, 1f to 1f, -0.1f to -0.0999755859375f, 2049f to 2048f, 2051f to 2052f, 65519f to 65504f,
            6.1e-5f to 6.097555160522461e-5f, 3e-8f to 5.960464477539063e-8f, 2.9e-8f to 0f, -1e-7f to -1.1920928955078125e-7f,
            6.103e-5f to 6.103515625e-5f,
        )
        for ((value, expected) in known) assertEquals("$value", expected, kept(value), 0f)
        assertEquals(Int.MIN_VALUE, kept(-0f).toRawBits())
        for (value in listOf(65520f, -1e9f, Float.NaN)) assertThrows(DataError::class.java) { kept(value) }
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
        const val KEPT = 24
    }
}
