package org.rootlet.training

import java.io.File
import java.nio.file.Files
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.AdapterError
import org.rootlet.CheckpointError
import org.rootlet.DataError
import org.rootlet.NonFiniteLossError

class TrainerTest {
    private fun folder(): File = Files.createTempDirectory("rootlet-trainer").toFile().apply { deleteOnExit() }

    @Test
    fun twoHundredStepsAgreeWithThePythonRuntime() {
        for (name in Reference.NAMES) {
            val reference = Reference(name)
            val losses = ArrayList<Float>()
            Trainer(reference.bundle).use { trainer ->
                val result = trainer.fit(reference.examples, reference.settings) { losses.add(it.loss) }
                assertTrue("${result.steps} steps", result.steps == reference.steps && result.steps >= 200)
                assertArrayEquals(name, reference.losses, losses.toFloatArray(), 1e-4f)
                assertTrue(name, Reference.distance(trainer.adapter(), reference.adapter) <= 1e-4)
                assertTrue("$name: it learned", Reference.distance(reference.bundle.initialAdapter(), reference.adapter) > 1e-2)
                val measured = trainer.evaluate(reference.examples)
                assertEquals(reference.loss, measured.loss, 1e-4)
                assertEquals(reference.metric, measured.metric, 1e-9)
                val found = trainer.predict(reference.x, reference.examples.count).flatMap { it.toList() }
                assertArrayEquals(name, reference.output.values, found.toFloatArray(), 1e-4f)
            }
        }
    }

    @Test
    fun aFitThatWasCancelledEndsWithTheSameBits() {
        for (name in listOf("demo", "adam")) {
            val reference = Reference(name)
            val whole = Trainer(reference.bundle).use {
                it.fit(reference.examples, reference.settings)
                it.adapter()
            }
            val file = File(folder(), "fit")
            Trainer(reference.bundle).use { trainer ->
                val first = trainer.fit(reference.examples, reference.settings, file) { it.step < 77 }
                assertTrue(first.stopped && first.steps == 77 && file.exists())
            }
            Trainer(reference.bundle).use { trainer ->
                val second = trainer.fit(reference.examples, reference.settings, file)
                assertEquals(77, second.resumedFromStep)
                assertFalse(second.stopped || file.exists())
                assertEquals(0.0, Reference.distance(whole, trainer.adapter()), 0.0)
            }
        }
    }

    @Test
    fun aFitThatDiedGoesOnAtItsLastCheckpoint() {
        val reference = Reference("adam")
        val whole = Trainer(reference.bundle).use {
            it.fit(reference.examples, reference.settings)
            it.adapter()
        }
        val file = File(folder(), "fit")
        Trainer(reference.bundle).use { trainer ->
            val started = trainer.adapter()
            assertThrows(IllegalStateException::class.java) {
                trainer.fit(reference.examples, reference.settings.copy(checkpointEvery = 20), file) {
                    check(it.step < 51) { "killed" }
                    true
                }
            }
            assertEquals("the adapter from before is back", 0.0, Reference.distance(started, trainer.adapter()), 0.0)
            val second = trainer.fit(reference.examples, reference.settings, file)
            assertEquals(40, second.resumedFromStep)
            assertEquals(0.0, Reference.distance(whole, trainer.adapter()), 0.0)
        }
    }

    @Test
    fun aCheckpointOfAnotherFitIsNotTakenUpAndADamagedOneIsNamed() {
        val reference = Reference("demo")
        val file = File(folder(), "fit")
        Trainer(reference.bundle).use { trainer ->
            trainer.fit(reference.examples, reference.settings, file) { it.step < 5 }
        }
        Trainer(reference.bundle).use { trainer ->
            val other = trainer.fit(reference.examples, reference.settings.copy(learningRate = 0.01), file) { it.step < 5 }
            assertEquals(0, other.resumedFromStep)
        }
        val content = file.readBytes()
        for (position in listOf(0, 40, content.size - 1)) {
            file.writeBytes(content.copyOf().also { it[position] = (it[position] + 1).toByte() })
            Trainer(reference.bundle).use { trainer ->
                assertThrows(CheckpointError::class.java) { trainer.fit(reference.examples, reference.settings, file) }
            }
        }
    }

    @Test
    fun whatIsSavedIsRestoredByTheSameBundleAlone() {
        val reference = Reference("adam")
        val file = File(folder(), "state")
        Trainer(reference.bundle).use { trainer ->
            trainer.fit(reference.examples, reference.settings.copy(epochs = 1))
            trainer.save(file)
            val learned = trainer.adapter()
            trainer.loadAdapter(reference.bundle.initialAdapter())
            assertTrue(Reference.distance(learned, trainer.adapter()) > 1e-4)
            trainer.restore(file)
            assertEquals(0.0, Reference.distance(learned, trainer.adapter()), 0.0)
        }
        Trainer(Reference("demo").bundle).use { other ->
            assertThrows(CheckpointError::class.java) { other.restore(file) }
            assertThrows(AdapterError::class.java) { other.loadAdapter(emptyMap()) }
        }
    }

    @Test
    fun aRateThatDivergesLeavesTheAdapterFromBefore() {
        val reference = Reference("demo")
        Trainer(reference.bundle).use { trainer ->
            val before = trainer.adapter()
            val wild = reference.settings.copy(learningRate = 1e30)
            assertThrows(NonFiniteLossError::class.java) { trainer.fit(reference.examples, wild) }
            assertEquals(0.0, Reference.distance(before, trainer.adapter()), 0.0)
        }
    }

    @Test
    fun examplesThatCannotBeUsedAreNamed() {
        val manifest = Reference("demo").bundle.manifest
        fun refused(words: String, x: Any, labels: LongArray) {
            val error = assertThrows(DataError::class.java) { Examples.classified(manifest, x, labels) }
            assertTrue(error.message!!, words in error.message!!)
        }
        refused("label 10", FloatArray(64), longArrayOf(10))
        refused("no examples", FloatArray(0), LongArray(0))
        refused("63 values", FloatArray(63), longArrayOf(1))
        refused("uint8", ByteArray(64), longArrayOf(1))
        refused("NaN", FloatArray(64) { Float.NaN }, longArrayOf(1))
    }

    @Test
    fun twoThousandStepsDoNotGrow() {
        val reference = Reference("demo")
        Trainer(reference.bundle).use { trainer ->
            val resident = ArrayList<Long>()
            val settings = reference.settings.copy(epochs = 2000 / 11 + 1)
            val result = trainer.fit(reference.examples, settings) {
                if (it.step % 250 == 0) {
                    System.gc()
                    resident.add(residentKib())
                }
                true
            }
            assertTrue("${result.steps} steps", result.steps >= 2000)
            val growth = resident.last() - resident[1]
            assertTrue("resident memory in KiB: $resident", growth < 16 * 1024)
        }
    }

    private fun residentKib(): Long =
        File("/proc/self/status").readLines().first { it.startsWith("VmRSS:") }.filter { it.isDigit() }.toLong()
}
