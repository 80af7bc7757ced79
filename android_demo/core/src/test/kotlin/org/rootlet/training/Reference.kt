package org.rootlet.training

import java.io.File
import java.nio.ByteBuffer
import org.rootlet.bundle.Bundle
import org.rootlet.bundle.PublicKey
import org.rootlet.wire.FloatTensor
import org.rootlet.wire.SafeTensors
import org.rootlet.wire.StrictJson

/** One fit of the Python runtime, written by `android_demo/build/reference.py`. */
class Reference(name: String) {
    val folder = File(System.getProperty("rootlet.reference"), name)
    private val facts = StrictJson.parseObject(File(folder, "facts.json").readBytes())
    private val tensors = SafeTensors.read(ByteBuffer.wrap(File(folder, "examples.safetensors").readBytes()))

    val bundle = Bundle.load(File(folder, "digits.rootlet"), listOf(PublicKey.ofHex(facts.text("publisher"))))
    val settings = FitSettings(
        facts.long("epochs").toInt(), facts.long("batch_size").toInt(), facts.double("learning_rate"),
        facts.long("seed"), RateSchedule("cosine", 0.1),
    )
    val steps = facts.long("steps").toInt()
    val loss = facts.double("loss")
    val metric = facts.double("metric")
    val energyJ = facts.double("energy_j")
    val x: FloatArray = tensors.getValue("x").values
    val labels = tensors.getValue("y").values.map { it.toLong() }.toLongArray()
    val losses: FloatArray = tensors.getValue("losses").values
    val output: FloatTensor = tensors.getValue("output")
    val examples = Examples.classified(bundle.manifest, x, labels)
    val adapter = SafeTensors.read(ByteBuffer.wrap(File(folder, "adapter.safetensors").readBytes()))

    /** Buffers and a fit with replay, by `write_replay`. */
    val replay: Map<String, FloatTensor> by lazy {
        SafeTensors.read(ByteBuffer.wrap(File(folder, "replay.safetensors").readBytes()))
    }

    /** Some of the examples. */
    fun part(from: Int, to: Int): Examples =
        Examples.classified(bundle.manifest, x.copyOfRange(from * 64, to * 64), labels.copyOfRange(from, to))

    companion object {
        val NAMES = listOf("demo", "adam", "latent")

        /** The largest difference of a value, over all tensors. */
        fun distance(a: Map<String, FloatTensor>, b: Map<String, FloatTensor>): Double {
            check(a.keys == b.keys) { "${a.keys} and ${b.keys}" }
            return a.keys.maxOf { name ->
                val (left, right) = a.getValue(name).values to b.getValue(name).values
                left.indices.maxOf { Math.abs(left[it].toDouble() - right[it]) }
            }
        }
    }
}
