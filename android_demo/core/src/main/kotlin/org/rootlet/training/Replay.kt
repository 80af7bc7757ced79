package org.rootlet.training

import org.rootlet.DataError

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
