package org.rootlet.demo

import android.content.Context
import java.io.File
import java.io.FileOutputStream
import java.nio.ByteBuffer
import java.time.Instant
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.device.DeviceSettings
import org.rootlet.device.EnergyEstimate
import org.rootlet.device.Ledger
import org.rootlet.device.WhatLeft
import org.rootlet.fleet.TrainerWork
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.privacy.PrivacyPolicy
import org.rootlet.training.Evaluation
import org.rootlet.training.Examples
import org.rootlet.training.Trainer
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors

/**
 * What the app does with the library: one bundle, one trainer, the drawings that were taught, the ledger.
 *
 * Drawings and adapter lie in the app's own storage, which Android encrypts and hands to no other app; they are not
 * encrypted a second time. Call from one thread that is not the screen's.
 */
class Session private constructor(private val folder: File) : AutoCloseable {
    private val bundle: Bundle
    private val trainer: Trainer
    private val drawings = File(folder, "drawings.safetensors")
    private val state = File(folder, "trainer")
    private val chosen = File(folder, "settings")
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

    /** What left the phone, line by line. */
    val ledger = Ledger(File(folder, "ledger"))

    /** What private rounds may spend, and have. */
    val account = PrivacyAccount(PrivacyPolicy(maxEpsilon = MOST_EPSILON), Ledger.read(File(folder, "ledger")).map { it.fields })

    private val energy = EnergyEstimate(bundle.manifest.cost)

    /** What the phone does in a round of a federation. */
    val work = TrainerWork(trainer, { examples() }, perExampleJ = energy.training(1, 1))

    /** What the owner chose. */
    var settings: DeviceSettings = DeviceSettings.load(chosen)
        set(value) {
            value.save(chosen)
            field = value
        }

    /** Joules that the app's own trainings since it was opened are estimated to have taken. */
    var estimatedJ = 0.0
        private set

    /** The last failure in the background; empty for none. */
    var trouble = ""
        private set

    /** How many drawings were taught. */
    val taught: Int get() = labels.size

    /** How many of each digit, those that were taught at all. */
    fun known(): String = (0L..9L).map { digit -> digit to labels.count { it == digit } }.filter { it.second > 0 }
        .joinToString { (digit, count) -> "$digit: $count" }

    /** What left the phone, in words. */
    fun left(): String = WhatLeft(Ledger.read(File(folder, "ledger"))).summary(account.epsilon("device"), account.policy.delta)

    /** Rounds of this day, UTC. */
    fun roundsToday(): Int = WhatLeft(Ledger.read(File(folder, "ledger"))).updatesOn(Instant.now().toString().take(10))

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
        estimatedJ += energy.training(result.examples.toLong(), (result.steps - result.resumedFromStep).toLong())
        if (!result.stopped) keep()
        return !result.stopped
    }

    /** Keeps what the trainer knows now. */
    fun keep() = trainer.save(state)

    /** Remembers what went wrong in the background, for the screen. */
    fun note(what: String) {
        trouble = what
    }

    /** Forgets the drawings, what was learnt, what was under way, and leaves the federation. The ledger stays. */
    fun erase() {
        for (file in listOf(drawings, state, File(folder, "fit"), chosen)) file.delete()
        File(folder, "mailbox").deleteRecursively()
        x = FloatArray(0)
        labels = LongArray(0)
        trouble = ""
        settings = DeviceSettings()
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
        private const val MOST_EPSILON = 8.0
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
