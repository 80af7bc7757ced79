package org.rootlet.device

import java.io.File
import java.nio.ByteBuffer
import kotlin.concurrent.thread
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.fleet.KeyStoreNodeKey
import org.rootlet.fleet.StopSignal
import org.rootlet.wire.SafeTensors

/**
 * What the app does, without Android, for `tests/android/test_phone_device.py`: `ADDRESS CA.pem BUNDLE PUBLISHER_HEX
 * FOLDER`. FOLDER holds `keys.p12`, and `examples.safetensors` to teach. It takes part for one turn, which ends with
 * its standard input, and prints what the screen would say.
 */
fun main(arguments: Array<String>) {
    val (address, authority, path, publisher, name) = arguments
    val folder = File(name)
    val device = PhoneDevice(File(folder, "device"), { Bundle.load(File(path), listOf(PublicKey.ofHex(publisher))) })
    val data = SafeTensors.read(ByteBuffer.wrap(File(folder, "examples.safetensors").readBytes()))
    val (x, labels) = data.getValue("x").values to data.getValue("y").values
    val width = x.size / labels.size
    for (row in labels.indices) device.learner.examples.add(x.copyOfRange(row * width, (row + 1) * width), labels[row].toLong())
    device.federation = FederationSettings.of(address, File(authority).readText())
    val stop = StopSignal()
    thread(isDaemon = true) {
        System.`in`.readBytes()
        stop.set()
    }
    val conditions = { DeviceConditions(charging = true, batteryLevel = 0.9, unmetered = true) }
    val key = { KeyStoreNodeKey.open(TestKeys(folder).store(), "node", TestKeys.WORD.toCharArray()) { error("there is one") } }
    val turn = device.work(stop, ParticipationPolicy(), conditions, key, onEvent = { System.err.println("${it.kind} ${it.detail}") })
    println("TOLD ${turn.told}")
    println("LEFT ${Words.left(device.left())}")
    println("KNOWS ${Words.knows(device.learner.learnt)}")
}
