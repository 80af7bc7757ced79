package org.rootlet.fleet

import java.io.File
import java.nio.ByteBuffer
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.training.Examples
import org.rootlet.training.Trainer
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors

/**
 * A device in a process of its own, for `tests/integration/test_kotlin_devices.py`:
 * `ADDRESS CA.pem BUNDLE PUBLISHER_HEX FOLDER`. FOLDER holds `private.der`, `public.der` and
 * `examples.safetensors`; each answered `train` leaves `received-N.safetensors` and `trained-N.safetensors` there.
 * It leaves when its standard input ends.
 */
fun main(arguments: Array<String>) {
    val (address, authority, path, publisher, name) = arguments
    val folder = File(name)
    val key = PlatformNodeKey.decoded(File(folder, "private.der").readBytes(), File(folder, "public.der").readBytes())
    Bundle.load(File(path), listOf(PublicKey.ofHex(publisher))).use { bundle ->
        Trainer(bundle).use { trainer ->
            val data = SafeTensors.read(ByteBuffer.wrap(File(folder, "examples.safetensors").readBytes()))
            val labels = data.getValue("y").values.map { it.toLong() }.toLongArray()
            val examples = Examples.classified(bundle.manifest, data.getValue("x").values, labels)
            val participant = Participant(trainer, { examples })
            var round = 0
            fun keep(what: String, adapter: Map<String, FloatTensor>) =
                File(folder, "$what-$round.safetensors").writeBytes(SafeTensors.write(adapter))
            val noted = Answering { request, shouldStop ->
                participant.answer(request, shouldStop).also { answer ->
                    if (request.messageType == "train" && answer?.error == "") {
                        round++
                        keep("received", (request.records.getValue("arrays") as Record.Arrays).arrays)
                        keep("trained", trainer.adapter())
                    }
                }
            }
            val transport = FleetTransport(address, key, File(authority).readBytes())
            val session = FleetSession(FleetConnection(transport, key, 10.0), noted, lingerS = 10.0) { println(it) }
            Thread {
                System.`in`.readBytes()
                session.stop()
            }.apply { isDaemon = true }.start()
            session.run()
        }
    }
    println("left")
}
