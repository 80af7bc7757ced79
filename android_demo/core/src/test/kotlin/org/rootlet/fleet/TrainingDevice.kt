package org.rootlet.fleet

import java.io.File
import java.nio.ByteBuffer
import kotlin.concurrent.thread
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.device.Ledger
import org.rootlet.device.Ledgered
import org.rootlet.privacy.PrivacyAccount
import org.rootlet.secagg.EnrolmentFolder
import org.rootlet.secagg.SecureParticipation
import org.rootlet.secagg.SecurePolicy
import org.rootlet.secagg.UsedRounds
import org.rootlet.training.Examples
import org.rootlet.training.Trainer
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors

/**
 * A device in a process of its own, for `tests/android/test_kotlin_devices.py`:
 * `ADDRESS CA.pem BUNDLE PUBLISHER_HEX FOLDER`. FOLDER holds `node.key`,
 * `examples.safetensors` and, for secure rounds of four devices or more, the device's enrolment; each answered `train` leaves `received-N.safetensors` and `trained-N.safetensors` there, and
 * each answer a line in its ledger.
 * It leaves when its standard input ends.
 */
fun main(arguments: Array<String>) {
    val (address, authority, path, publisher, name) = arguments
    val folder = File(name)
    val key = PemNodeKey.load(File(folder, "node.key"))
    Bundle.load(File(path), listOf(PublicKey.ofHex(publisher))).use { bundle ->
        Trainer(bundle).use { trainer ->
            val data = SafeTensors.read(ByteBuffer.wrap(File(folder, "examples.safetensors").readBytes()))
            val labels = data.getValue("y").values.map { it.toLong() }.toLongArray()
            val examples = Examples.classified(bundle.manifest, data.getValue("x").values, labels)
            val work = Noted(TrainerWork(trainer, { examples }), folder)
            val connection = FleetConnection.open(address, key, File(authority).readBytes(), heartbeatIntervalS = 10.0)
            val stop = StopSignal()
            thread(isDaemon = true) {
                System.`in`.readBytes()
                stop.set()
            }
            val manifest = bundle.manifest
            val values = trainer.adapter().values.sumOf { it.values.size.toLong() }
            val secure = EnrolmentFolder(File(folder, "enrolment")).load()?.let {
                SecureParticipation(it, SecurePolicy(minLive = 4), bundle.manifestSha256, values, UsedRounds(File(folder, "rounds")))
            }
            val ledger = Ledger(File(folder, "ledger"))
            val account = PrivacyAccount(ledger = Ledger.read(File(folder, "ledger")).map { it.fields })
            val participant = Participant(work, secure = secure, account = account, onFailure = { it.printStackTrace() })
            val ledgered = Ledgered(participant, ledger, address, "${manifest.name} ${manifest.version}", account)
            FleetSession(connection, ledgered, Mailbox(), lingerS = 1.0, onEvent = { println("${it.kind} ${it.detail}") }).run(stop)
        }
    }
    println("left")
}

/** Leaves what it received and what it trained, round by round, in a folder. */
private class Noted(private val work: TrainerWork, private val folder: File) : RoundWork by work {
    private var round = 0

    override fun train(adapter: Adapter, settings: TrainSettings, shouldStop: () -> Boolean): Trained? {
        val trained = work.train(adapter, settings, shouldStop) ?: return null
        round++
        keep("received", adapter)
        keep("trained", trained.adapter)
        return trained
    }

    private fun keep(what: String, adapter: Adapter) {
        val tensors = adapter.mapValues { (_, array) -> FloatTensor(array.shape.map { it.toLong() }.toLongArray(), array.floats()) }
        File(folder, "$what-$round.safetensors").writeBytes(SafeTensors.write(tensors))
    }
}
