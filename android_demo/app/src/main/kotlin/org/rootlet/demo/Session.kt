package org.rootlet.demo

import android.content.Context
import java.io.File
import java.io.FileOutputStream
import java.nio.ByteBuffer
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.training.Evaluation
import org.rootlet.training.Examples
import org.rootlet.training.Trainer
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors

/**
 * What the app does with the library: one bundle, one trainer, the drawings that were taught.
 *
 * Drawings and adapter lie in the app's own storage, which Android encrypts and hands to no other app; they are not
 * encrypted a second time. Call from one thread that is not the screen's.
 */
class Session private constructor(private val folder: File) : AutoCloseable {
    private val bundle: Bundle
    private val trainer: Trainer
    private val drawings = File(folder, "drawings.safetensors")
    private val state = File(folder, "trainer")
    private var x = FloatArray(0)
    private var labels = LongArray(0)

    init {
        val publisher = File(folder, PUBLISHER).readBytes().toString(Charsets.US_ASCII).trim()
        bundle = Bundle.load(File(folder, BUNDLE), listOf(PublicKey.ofHex(publisher)))
        trainer = Trainer(bundle)
        if (state.exists()) trainer.restore(state)
        if (drawings.exists()) {
            val kept = SafeTensors.read(ByteBuffer.wrap(drawings.readBytes()))
            x = kept.getValue("x").values
            labels = kept.getValue("y").values.map { it.toLong() }.toLongArray()
        }
    }

    /** How many drawings were taught. */
    val taught: Int get() = labels.size

    /** The probabilities of the digits. */
    fun predict(drawing: FloatArray): FloatArray = trainer.predict(drawing, 1)[0]

    /** Keeps a drawing, and its digit. */
    fun teach(drawing: FloatArray, digit: Int) {
        x += drawing
        labels += digit.toLong()
        val width = bundle.manifest.x.elements
        val kept = mapOf(
            "x" to FloatTensor(longArrayOf(labels.size.toLong(), width), x),
            "y" to FloatTensor(longArrayOf(labels.size.toLong()), FloatArray(labels.size) { labels[it].toFloat() }),
        )
        replace(drawings, SafeTensors.write(kept))
    }

    /** Accuracy on the taught drawings with what is known now; null without a drawing. */
    fun measure(): Evaluation? = if (labels.isEmpty()) null else trainer.evaluate(examples())

    /**
     * Trains on the taught drawings, and keeps what was learnt. An interrupted training is kept too, and taken up by the
     * next call; whether this one was finished.
     */
    fun train(goOn: () -> Boolean): Boolean {
        if (labels.isEmpty()) return true
        val settings = trainer.suggested(SEED).let { it.copy(batchSize = minOf(it.batchSize, labels.size)) }
        val result = trainer.fit(examples(), settings, File(folder, "fit")) { goOn() }
        if (!result.stopped) trainer.save(state)
        return !result.stopped
    }

    /** Forgets the drawings and what was learnt. */
    fun erase() {
        for (file in listOf(drawings, state, File(folder, "fit"))) file.delete()
        x = FloatArray(0)
        labels = LongArray(0)
        trainer.loadAdapter(bundle.initialAdapter())
    }

    override fun close() {
        trainer.close()
        bundle.close()
    }

    private fun examples() = Examples.classified(bundle.manifest, x, labels)

    companion object {
        private const val BUNDLE = "digits.rootlet"
        private const val PUBLISHER = "publisher.hex"
        private const val SEED = 0L
        private var only: Session? = null

        /** Runs [work] with the app's session, which is opened at the first call; one call at a time. */
        @Synchronized
        fun <T> use(context: Context, work: (Session) -> T): T {
            val session = only ?: Session(unpacked(context)).also { only = it }
            return work(session)
        }

        /** The bundle is copied out of the APK once for each version of the app's file. */
        private fun unpacked(context: Context): File {
            val folder = context.filesDir
            for (name in listOf(BUNDLE, PUBLISHER)) {
                context.assets.open(name).use { replace(File(folder, name), it.readBytes()) }
            }
            return folder
        }

        private fun replace(file: File, content: ByteArray) {
            val fresh = File(file.path + ".new")
            FileOutputStream(fresh).use {
                it.write(content)
                it.fd.sync()
            }
            check(fresh.renameTo(file)) { "$file cannot be replaced" }
        }
    }
}
