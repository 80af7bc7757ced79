package org.rootlet.training

/** Which examples of an endless stream are kept: `UNIFORM`, or `CLASS_BALANCED` (classification only). */
enum class Selection(val wire: String) { UNIFORM("uniform"), CLASS_BALANCED("class_balanced") }

/**
 * Reservoir sampling: tells the slot that a new example takes, -1 where it is not kept. It holds no examples; its
 * state is a few counters, and every choice comes from the generator passed in. The choices are those of
 * `rootlet_runtime.reservoir` for the same numbers.
 */
internal sealed interface Reservoir {
    fun place(label: Int, random: NumpyRandom): Int

    /** Counters to be kept with the examples. */
    val counters: LongArray
}

/**
 * Vitter's algorithm R (1985): after n examples each is held with probability `min(1, capacity / n)`.
 *
 * @param seen examples seen before, where a memory is taken up again.
 */
internal class UniformReservoir(private val capacity: Int, private var seen: Long = 0) : Reservoir {
    override val counters: LongArray get() = longArrayOf(seen)

    override fun place(label: Int, random: NumpyRandom): Int {
        seen++
        if (seen <= capacity) return (seen - 1).toInt()
        val drawn = random.integer(seen)
        return if (drawn < capacity) drawn.toInt() else -1
    }
}

/**
 * Class-balancing reservoir sampling (Chrysakis & Moens 2020).
 *
 * While there is room every example is kept. Then one of a class that was never the largest takes the place of a
 * random one of the largest class; one of a class c that was replaces a random one of its own with probability
 * `held_c / seen_c`. Once full, a class loses examples only while it is the largest.
 *
 * @param labels of the held examples, slot by slot.
 * @param counters examples seen of each class, then 1 for each class that was the largest; empty at first.
 */
internal class BalancedReservoir(
    private val capacity: Int,
    private val classes: Int,
    labels: List<Int> = emptyList(),
    counters: LongArray = LongArray(2 * classes),
) : Reservoir {
    private val labels = labels.toMutableList()
    private val held = IntArray(classes) { label -> labels.count { it == label } }
    private val seen = counters.copyOf(classes)
    private val largest = BooleanArray(classes) { counters[classes + it] == 1L }

    override val counters: LongArray get() = seen + LongArray(classes) { if (largest[it]) 1 else 0 }

    override fun place(label: Int, random: NumpyRandom): Int {
        seen[label]++
        if (labels.size < capacity) {
            labels.add(label)
            held[label]++
            noteLargest()
            return labels.size - 1
        }
        val loser = if (largest[label]) {
            if (random.double() * seen[label] >= held[label]) return -1
            label
        } else {
            val most = held.maxOrNull()!!
            pick(held.indices.filter { held[it] == most }, random)
        }
        val slot = pick(labels.indices.filter { labels[it] == loser }, random)
        labels[slot] = label
        held[loser]--
        held[label]++
        noteLargest()
        return slot
    }

    private fun pick(from: List<Int>, random: NumpyRandom) = from[random.integer(from.size.toLong()).toInt()]

    private fun noteLargest() {
        if (labels.size < capacity) return
        val most = held.maxOrNull()!!
        for (label in held.indices) if (held[label] == most) largest[label] = true
    }
}
