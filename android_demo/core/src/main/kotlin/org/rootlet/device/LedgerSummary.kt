package org.rootlet.device

import java.util.Calendar
import org.rootlet.wire.RawNumber

/**
 * What was spent of one unit's privacy, as the ledger's last line of it has it.
 *
 * @property epsilon of all private rounds together, as it is written there.
 */
data class EpsilonSpent(val epsilon: String, val delta: String, val unit: String, val neighbours: String)

/**
 * What left the device, by its ledger.
 *
 * @property updates rounds of training whose result was sent.
 * @property plain those of them that were sent as they are, under no protection but TLS.
 * @property metrics evaluations whose figures were sent.
 * @property stages stages of secure rounds.
 * @property refusals requests that were answered with an error.
 * @property bytes of all of them, before encoding and TLS.
 * @property privacy spent, by unit; empty without a private round.
 */
data class LedgerSummary(
    val updates: Int,
    val plain: Int,
    val metrics: Int,
    val stages: Int,
    val refusals: Int,
    val bytes: Long,
    val privacy: List<EpsilonSpent>,
) {
    companion object {
        /** Of a ledger's lines. */
        fun of(entries: List<LedgerEntry>): LedgerSummary {
            val count = entries.groupingBy { it.kind }.eachCount()
            val spent = LinkedHashMap<String, EpsilonSpent>()
            for (fields in entries.map { it.fields }.filter { it["epsilon"] != null }) {
                val (epsilon, delta) = listOf("epsilon", "delta").map { written(fields[it]) }
                val (unit, neighbours) = listOf("unit", "neighbours").map { fields[it] as? String ?: "unnamed" }
                spent[unit] = EpsilonSpent(epsilon, delta, unit, neighbours)
            }
            return LedgerSummary(
                count["update"] ?: 0, entries.count { it.kind == "update" && it.fields["protection"] == "none" }, count["metrics"] ?: 0, count["stage"] ?: 0, count["refusal"] ?: 0,
                entries.sumOf { it.fields["bytes"] as? Long ?: 0L }, spent.values.toList(),
            )
        }

        /** Rounds whose result was sent in the local day of [now]. */
        fun roundsToday(entries: List<LedgerEntry>, now: Calendar = Calendar.getInstance()): Int {
            val midnight = (now.clone() as Calendar).apply {
                listOf(Calendar.HOUR_OF_DAY, Calendar.MINUTE, Calendar.SECOND, Calendar.MILLISECOND).forEach { set(it, 0) }
            }
            val from = Ledger.time(midnight.time) // times of one length and zone sort as text
            return entries.count { it.kind == "update" && it.time >= from }
        }

        private fun written(number: Any?): String = if (number is RawNumber) number.text else "$number"
    }
}
