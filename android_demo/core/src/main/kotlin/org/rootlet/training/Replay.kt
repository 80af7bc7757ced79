package org.rootlet.training

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.security.MessageDigest
import org.rootlet.CheckpointError
import org.rootlet.DataError
import org.rootlet.bundle.Manifest
import org.rootlet.wire.replaceFile
import org.rootlet.wire.sha256

/**
 * A bounded sample of all examples ever seen, trained on again so that they stay learnt. What it holds is raw
 * training data: erase it with the examples.
 *
 * The same examples and seeds give the same buffer, also where it was saved and restored in between. Inputs are kept
 * exactly, also where the bundle learns from latents.
 *
 * @property capacity how many examples the quota holds.
 * @throws DataError the quota holds no example, or classes are to be balanced where there are none.
 */
class ReplayBuffer internal constructor(private val manifest: Manifest, val capacity: Int, private val selection: Selection) {
    private val xBytes = Math.multiplyExact(manifest.x.elements.toInt(), Examples.elementBytes(manifest.x.dtype))
    private val yBytes = if (manifest.classifies) Long.SIZE_BYTES else Float.SIZE_BYTES * manifest.numOutputs
    private val x = Examples.direct(capacity, xBytes)
    private val y = Examples.direct(capacity, yBytes)
    private val uses = IntArray(capacity)
    private var reservoir = fresh()

    /** Examples held. */
    var size = 0
        private set

    /** @param quotaBytes the most that the file of [save] takes. */
    constructor(manifest: Manifest, quotaBytes: Long, selection: Selection = Selection.CLASS_BALANCED) :
        this(manifest, capacityFor(manifest, quotaBytes, selection), selection)

    init {
        if (selection == Selection.CLASS_BALANCED && !manifest.classifies) {
            throw DataError("class_balanced: a regression has no classes; use UNIFORM")
        }
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
     * Offers examples, in order.
     *
     * @param seed decides which are kept, as `numpy.random.default_rng(seed)` would; not negative.
     */
    fun add(examples: Examples, seed: Long) {
        val random = NumpyRandom(seed)
        for (row in 0 until examples.count) {
            val label = if (manifest.classifies) examples.y.getLong(row * yBytes).toInt() else 0
            val slot = reservoir.place(label, random)
            if (slot < 0) continue
            copyRow(examples.x, row, x, slot, xBytes)
            copyRow(examples.y, row, y, slot, yBytes)
            uses[slot] = 0
            size = maxOf(size, slot + 1)
        }
    }

    /** [fresh], then all that is held. */
    internal fun after(fresh: Examples): Examples {
        val (joinedX, joinedY) = listOf(xBytes, yBytes).map { Examples.direct(fresh.count + size, it) }
        for (row in 0 until fresh.count) {
            copyRow(fresh.x, row, joinedX, row, xBytes)
            copyRow(fresh.y, row, joinedY, row, yBytes)
        }
        for (slot in 0 until size) {
            copyRow(x, slot, joinedX, fresh.count + slot, xBytes)
            copyRow(y, slot, joinedY, fresh.count + slot, yBytes)
        }
        return Examples(fresh.count + size, joinedX, joinedY)
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
        val content = ByteBuffer.allocate(4 + 8 * counters.size + size * (xBytes + yBytes + 4)).putInt(size)
        counters.forEach { content.putLong(it) }
        for (slot in 0 until size) content.putInt(uses[slot])
        for ((from, width) in listOf(x to xBytes, y to yBytes)) {
            content.put(from.duplicate().apply { clear(); limit(size * width) })
        }
        try {
            replaceFile(file, digest(content.array()), content.array())
        } catch (error: IOException) {
            throw CheckpointError("$file: cannot be written: ${error.message}", error)
        }
    }

    /**
     * Takes up what [save] wrote; whether there was anything.
     *
     * @throws CheckpointError damaged, or of a buffer with other settings; this one is as it was.
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
        val counters = LongArray(reservoir.counters.size) { from.long }
        for (slot in 0 until held) uses[slot] = from.int
        for ((to, width) in listOf(x to xBytes, y to yBytes)) {
            to.duplicate().apply { clear() }.put(from.duplicate().apply { limit(position() + held * width) })
            from.position(from.position() + held * width)
        }
        size = held
        val labels = if (selection == Selection.CLASS_BALANCED) List(held) { y.getLong(it * yBytes).toInt() } else emptyList()
        reservoir = when (selection) {
            Selection.UNIFORM -> UniformReservoir(capacity, counters[0])
            Selection.CLASS_BALANCED -> BalancedReservoir(capacity, manifest.numOutputs, labels, counters)
        }
        return true
    }

    private fun fresh(): Reservoir =
        if (selection == Selection.UNIFORM) UniformReservoir(capacity) else BalancedReservoir(capacity, manifest.numOutputs)

    /** Over the content and all that it depends on. */
    private fun digest(content: ByteArray): ByteArray {
        val settings = "rootlet-replay-1 $capacity ${selection.wire} ${manifest.x.dtype} ${manifest.x.elements} ${manifest.y}"
        return sha256(settings.toByteArray(), content)
    }

    private companion object {
        const val DIGEST_BYTES = 32

        fun capacityFor(manifest: Manifest, quotaBytes: Long, selection: Selection): Int {
            val counters = if (selection == Selection.UNIFORM) 1 else 2 * manifest.numOutputs
            val row = manifest.x.elements * Examples.elementBytes(manifest.x.dtype) + 4 +
                if (manifest.classifies) Long.SIZE_BYTES else Float.SIZE_BYTES * manifest.numOutputs
            val fixed = DIGEST_BYTES + 4 + 8L * counters
            if (quotaBytes < fixed + row) throw DataError("quotaBytes $quotaBytes: holds no example; one needs ${fixed + row} bytes")
            return minOf((quotaBytes - fixed) / row, Int.MAX_VALUE / row).toInt()
        }

        fun copyRow(from: ByteBuffer, row: Int, to: ByteBuffer, slot: Int, width: Int) {
            val source = from.duplicate().apply { limit((row + 1) * width); position(row * width) }
            to.duplicate().apply { clear(); position(slot * width) }.put(source)
        }
    }
}

/**
 * How a fit mixes a buffer into its batches.
 *
 * @property buffer what is replayed; an empty one changes nothing.
 * @property fraction share of each batch that comes from the buffer, in (0, 1); rounded, at least one row and at least
 * one fresh one.
 * @throws DataError [fraction] is out of bounds.
 */
class Replay(val buffer: ReplayBuffer, val fraction: Double = 0.5) {
    init {
        if (!(fraction > 0 && fraction < 1)) throw DataError("replay fraction $fraction: must lie between 0 and 1")
    }

    /** Replayed rows in a batch of this size. */
    internal fun rowsPerBatch(batchSize: Int): Int {
        if (batchSize < 2) throw DataError("replay needs a batch_size of at least 2: one fresh row, one replayed")
        return minOf(maxOf(Math.rint(fraction * batchSize).toInt(), 1), batchSize - 1)
    }
}

/**
 * Which rows make up each step of a fit, as `rootlet_runtime.batches.Schedule`: the rows 0 until [fresh] are seen once
 * an epoch, those after them are replayed, [perBatch] in each batch, by permutations of their own.
 */
internal class BatchOrder(private val seed: Long, private val fresh: Int, private val size: Int, private val replayed: Int, private val perBatch: Int) {
    private val freshPerBatch = size - perBatch
    val stepsPerEpoch = (fresh + freshPerBatch - 1) / freshPerBatch
    private var epoch = -1
    private var order = IntArray(0)

    /** The real rows of a step. */
    fun rows(step: Int): IntArray {
        val index = step % stepsPerEpoch
        if (step / stepsPerEpoch != epoch) {
            epoch = step / stepsPerEpoch
            order = NumpyRandom(seed, epoch.toLong()).permutation(fresh)
        }
        val own = order.copyOfRange(index * freshPerBatch, minOf((index + 1) * freshPerBatch, fresh))
        return if (replayed == 0) own else own + replayedRows(step)
    }

    /** How often so many steps use each replayed row. */
    fun uses(steps: Int): IntArray {
        val found = IntArray(replayed)
        for (step in 0 until if (replayed == 0) 0 else steps) for (row in replayedRows(step)) found[row - fresh]++
        return found
    }

    private fun replayedRows(step: Int): IntArray {
        val first = step.toLong() * perBatch
        return IntArray(perBatch) { fresh + cycle((first + it) / replayed)[((first + it) % replayed).toInt()] }
    }

    private var cycle = -1L
    private var cycled = IntArray(0)

    private fun cycle(number: Long): IntArray {
        if (number != cycle) {
            cycle = number
            cycled = NumpyRandom(seed, number, REPLAY_STREAM).permutation(replayed)
        }
        return cycled
    }

    private companion object {
        const val REPLAY_STREAM = 1L
    }
}
