package org.rootlet.device

import java.util.Locale

/** What a screen says of a device, in plain words; each is a sentence or two, and true of nothing else. */
object Words {
    /** What the model knows. */
    fun knows(learnt: Learnt?): String {
        if (learnt == null) return "Nothing was learnt here yet: draw a digit, and teach it."
        val where = if (learnt.inRound) "with what the server sent" else "before the last training"
        return "Right on the ${count(learnt.examples, "drawing")} that it learnt from: " +
            "${percent(learnt.before)} $where, ${percent(learnt.after)} after it."
    }

    /** What was taught, by class. */
    fun taught(countByClass: List<Int>): String {
        val some = countByClass.withIndex().filter { it.value > 0 }
        if (some.isEmpty()) return "No drawings are kept."
        return "Drawings kept on this phone: " + some.joinToString(", ") { "${it.value} of ${it.index}" } + "."
    }

    /** The most likely classes. */
    fun guesses(odds: FloatArray): String =
        odds.indices.sortedByDescending { odds[it] }.take(3).joinToString("   ") { "$it: ${percent(odds[it].toDouble())}" }

    /** The battery. */
    fun battery(now: DeviceConditions): String {
        val level = now.batteryLevel?.let { percent(it) } ?: "level unknown"
        val charging = when (now.charging) {
            true -> ", charging"
            false -> ", not charging"
            null -> ""
        }
        return "Battery: $level$charging."
    }

    /** What training spent; what was measured and what was estimated are never added. */
    fun energy(spent: EnergySpent): String {
        val parts = listOfNotNull(
            spent.measuredJ.takeIf { it > 0 }?.let { "${joules(it)} measured by the battery's gauge (the whole phone)" },
            spent.estimatedJ.takeIf { it > 0 }?.let { "${joules(it)} estimated from the operations (arithmetic and memory alone)" },
        )
        return if (parts.isEmpty()) "Energy of training: none yet." else "Energy of training: ${parts.joinToString("; and ")}."
    }

    /** What left the phone. */
    fun left(summary: LedgerSummary): String {
        val parts = listOf(
            summary.updates to "round of training", summary.metrics to "evaluation",
            summary.stages to "stage of secure rounds", summary.refusals to "refusal",
        ).filter { it.first > 0 }
        if (parts.isEmpty()) return "Nothing has left this phone."
        val plain = if (summary.plain == 0) "" else " ${count(summary.plain, "round")} under no protection but TLS."
        return "Left this phone: ${parts.joinToString(", ") { count(it.first, it.second) }}; ${summary.bytes} bytes in all.$plain"
    }

    /** Epsilon is never told without its delta, unit and relation. */
    fun privacy(summary: LedgerSummary): String {
        if (summary.privacy.isEmpty()) return "Epsilon spent: none; no private rounds."
        return "Epsilon spent: " + summary.privacy.joinToString("; ") { "${it.epsilon} at delta ${it.delta} (per ${it.unit}, ${it.neighbours})" } + "."
    }

    /** Whether this device takes part, and where. */
    fun federation(settings: FederationSettings?, paused: Boolean): String = when {
        settings == null -> "This phone takes part in no federation, and learns for itself."
        paused -> "Paused: this phone takes part in nothing. It belongs to ${settings.address}."
        else -> "Takes part at ${settings.address}, when it charges, is idle, and has a network that is not metered."
    }

    private fun count(number: Int, what: String): String {
        val (word, rest) = what.substringBefore(' ') to what.removePrefix(what.substringBefore(' '))
        return if (number == 1) "1 $what" else "$number ${word}s$rest"
    }

    private fun percent(share: Double): String = "${Math.round(100 * share)} %"

    private fun joules(joules: Double): String = when {
        joules >= 1 -> "%.1f J".format(Locale.ROOT, joules)
        joules >= 1e-3 -> "%.1f mJ".format(Locale.ROOT, 1e3 * joules)
        else -> "%.1f µJ".format(Locale.ROOT, 1e6 * joules)
    }
}
