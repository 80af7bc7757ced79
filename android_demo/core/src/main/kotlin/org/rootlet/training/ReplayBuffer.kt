package org.rootlet.training

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.security.MessageDigest
import org.rootlet.CheckpointError
import org.rootlet.DataError
import org.rootlet.bundle.BASE_FILE
import org.rootlet.bundle.Manifest
import org.rootlet.wire.replaceFile
import org.rootlet.wire.sha256

/**
 * What a buffer keeps.
 *
 * @property quotaBytes most bytes of its file; the rows in memory take no more.
 * @property selection `CLASS_BALANCED` (classification only) or `UNIFORM`.
 */
data class ReplaySettings(
    val quotaBytes: Long,
    val selection: Selection = Selection.CLASS_BALANCED,
    val storage: Storage = Storage.FLOAT16,
)

/**
 * A bounded sample of all examples ever seen, trained on again so that they stay learnt; of their latents, where the
 * bundle learns from those. What it holds is raw training data: erase it with the examples. [Trainer.remember] fills it.
 *
 * The same examples, seeds and settings give the buffer of `rootlet_runtime.replay`, also where it was saved and
 * restored in between (in a file of Kotlin's own).
 *
 * @throws DataError the quota holds no example, or classes are to be balanced where there are none.
 */
class ReplayBuffer(private val manifest: Manifest, private val settings: ReplaySettings) {
    private val balanced = settings.selection == Selection.CLASS_BALANCED
    private val xCodec = RowCodec(manifest.learnsFrom, settings.storage)
    private val yCodec = RowCodec(manifest.y)

    /** How many examples the quota holds. */
    val capacity: Int

    private val x: ByteBuffer
    private val y: ByteBuffer
    private val uses: IntArray
    private var reservoir: Reservoir

    /** Examples held. */
    var size = 0
        private set

    init {
        if (balanced && !manifest.classifies) throw DataError("class_balanced: a regression has no classes; use UNIFORM")
        val needed = quotaBytes(manifest, settings, 1)
        if (settings.quotaBytes < needed) {
            throw DataError("quotaBytes ${settings.quotaBytes}: holds no example; one needs $needed bytes")
        }
        val rowBytes = quotaBytes(manifest, settings, 2) - needed
        capacity = minOf(1 + (settings.quotaBytes - needed) / rowBytes, (Int.MAX_VALUE - needed) / rowBytes).toInt()
        x = Examples.direct(capacity, xCodec.rowBytes)
        y = Examples.direct(capacity, yCodec.rowBytes)
        uses = IntArray(capacity)
        reservoir = fresh()
    }

    /** How often each held example was trained on. */
    fun uses(): IntArray = uses.copyOf(size)

    /** Forgets every example and every count. */
    fun clear() {
        size = 0
        uses.fill(0)
        reservoir = fresh()
    }

    /**
     * Offers examples, in order; what they are is [Manifest.learnsFrom].
     *
     * @throws DataError as for [RowCodec.encode]; the buffer is as it was.
     */
    internal fun add(examples: Examples, random: NumpyRandom, used: Int) {
        val packedX = xCodec.encode(examples.x, examples.count)
        val packedY = yCodec.encode(examples.y, examples.count)
        for (row in 0 until examples.count) {
            val label = if (manifest.classifies) examples.y.getLong(row * yCodec.rowBytes).toInt() else 0
            val slot = reservoir.place(label, random)
            if (slot < 0) continue
            copyRow(packedX, row, x, slot, xCodec.rowBytes)
            copyRow(packedY, row, y, slot, yCodec.rowBytes)
            uses[slot] = used
            size = maxOf(size, slot + 1)
        }
    }

    /** [fresh], then all that is held, decoded. */
    internal fun after(fresh: Examples): Examples {
        val count = fresh.count + size
        val joinedX = Examples.direct(count, xCodec.plainBytes)
        val joinedY = Examples.direct(count, yCodec.plainBytes)
        joinedX.put(fresh.x.duplicate().apply { clear() })
        joinedY.put(fresh.y.duplicate().apply { clear() })
        for (slot in 0 until size) {
            xCodec.decode(x, slot, joinedX)
            yCodec.decode(y, slot, joinedY)
        }
        return Examples(count, joinedX.apply { clear() }, joinedY.apply { clear() })
    }

    /** Adds to the count of uses of each held example. */
    internal fun charge(more: IntArray) {
        for (slot in 0 until size) uses[slot] += more[slot]
    }

    /**
     * Writes the buffer; a crash leaves the old file or the new one.
     *
     * @throws CheckpointError the disk refused.
     */
    fun save(file: File) {
        val counters = reservoir.counters
        val rows = parts()
        val content = ByteBuffer.allocate(4 + countersBytes(counters) + size * (4 + rows.sumOf { it.second })).putInt(size)
        counters.forEachIndexed { at, value -> if (isFlag(at)) content.put(value.toByte()) else content.putLong(value) }
        for (slot in 0 until size) content.putInt(uses[slot])
        for ((from, width) in rows) content.put(from.duplicate().apply { clear(); limit(size * width) })
        try {
            replaceFile(file, digest(content.array()), content.array())
        } catch (error: IOException) {
            throw CheckpointError("$file: cannot be written: ${error.message}; make room, or choose another folder", error)
        }
    }

    /**
     * Takes up what [save] wrote; whether there was anything.
     *
     * @throws CheckpointError damaged, or of a buffer with other settings or examples; this one is as it was.
     */
    fun restore(file: File): Boolean {
        if (!file.exists()) return false
        val bytes = try {
            file.readBytes()
        } catch (error: IOException) {
            throw CheckpointError("$file: cannot be read: ${error.message}", error)
        }
        val content = bytes.copyOfRange(minOf(DIGEST_BYTES, bytes.size), bytes.size)
        if (!MessageDigest.isEqual(digest(content), bytes.copyOf(DIGEST_BYTES))) {
            throw CheckpointError("$file: damaged, or a replay buffer with other settings; delete it to start an empty one")
        }
        val from = ByteBuffer.wrap(content)
        val held = from.int
        val counters = LongArray(reservoir.counters.size) { if (isFlag(it)) from.get().toLong() else from.long }
        for (slot in 0 until held) uses[slot] = from.int
        for ((to, width) in parts()) {
            to.duplicate().apply { clear() }.put(from.duplicate().apply { limit(position() + held * width) })
            from.position(from.position() + held * width)
        }
        size = held
        val labels = if (balanced) List(held) { y.getLong(it * yCodec.rowBytes).toInt() } else emptyList()
        reservoir = when (settings.selection) {
            Selection.UNIFORM -> UniformReservoir(capacity, counters[0])
            Selection.CLASS_BALANCED -> BalancedReservoir(capacity, manifest.numOutputs, labels, counters)
        }
        return true
    }

    private fun parts() = listOf(x to xCodec.rowBytes, y to yCodec.rowBytes)

    private fun isFlag(counter: Int) = balanced && counter >= manifest.numOutputs

    private fun countersBytes(counters: LongArray) = counters.indices.sumOf { if (isFlag(it)) 1 else Long.SIZE_BYTES }

    private fun fresh(): Reservoir = if (balanced) BalancedReservoir(capacity, manifest.numOutputs) else UniformReservoir(capacity)

    /** Over the content and all that it depends on; latents of another network mean nothing. */
    private fun digest(content: ByteArray): ByteArray {
        val encoder = if (manifest.latent == null) "" else {
            listOf(manifest.graphs.getValue("encode").file, BASE_FILE).joinToString(" ") { manifest.files.getValue(it).sha256 }
        }
        return sha256("rootlet-replay-2 $settings ${manifest.learnsFrom} ${manifest.y} $encoder".toByteArray(), content)
    }

    companion object {
        private const val DIGEST_BYTES = 32
        private const val OVERHEAD_BYTES = 4096L // as in Python, so that a quota holds as many examples there

        /** The quota that holds so many examples, with these settings but for their own quota; Python's. */
        fun quotaBytes(manifest: Manifest, settings: ReplaySettings, examples: Int): Long {
            val counters = if (settings.selection == Selection.CLASS_BALANCED) 9L * manifest.numOutputs else 0L
            val row = RowCodec(manifest.learnsFrom, settings.storage).rowBytes.toLong() + RowCodec(manifest.y).rowBytes + Int.SIZE_BYTES
            return OVERHEAD_BYTES + counters + Math.multiplyExact(row, examples.toLong())
        }

        private fun copyRow(from: ByteBuffer, row: Int, to: ByteBuffer, slot: Int, width: Int) {
            val source = from.duplicate().apply { limit((row + 1) * width); position(row * width) }
            to.duplicate().apply { clear(); position(slot * width) }.put(source)
        }
    }
}
