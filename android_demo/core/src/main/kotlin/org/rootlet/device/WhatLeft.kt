package org.rootlet.device

/**
 * What left the device, in words for the one who owns it: by the ledger, in which nothing can be changed unseen.
 *
 * @param entries of the ledger, verified.
 */
class WhatLeft(entries: List<LedgerEntry>) {
    private val answers = entries.filter { it.kind in SENT }

    /** Updates that were sent. */
    val updates: Int = answers.count { it.kind == "update" }

    /** Bytes of all answers, refusals included. */
    val bytes: Long = answers.sumOf { it.fields["bytes"] as? Long ?: 0 }

    /** Rounds in which the device trained on one day of UTC, `yyyy-MM-dd`. */
    fun updatesOn(day: String): Int = answers.count { it.kind == "update" && it.time.startsWith(day) }

    /** One line; [epsilon] of the device is told with its delta where private rounds have spent any. */
    fun summary(epsilon: Double, delta: Double): String {
        if (answers.isEmpty()) return "Nothing has left this phone."
        val last = answers.last()
        val clear = answers.count { it.kind == "update" && it.fields["protection"] == "none" }
        val spent = if (epsilon > 0) "Epsilon spent: ${"%.2f".format(null, epsilon)} at delta $delta (per device)." else "No private round yet: no epsilon is promised."
        return "$updates updates of the adapter left this phone ($clear of them in clear to the server), $bytes bytes in all; no drawing. " +
            "The last answer was a ${last.kind} on ${last.time.take(16).replace('T', ' ')} UTC. $spent"
    }

    private companion object {
        val SENT = setOf("update", "metrics", "stage", "refusal")
    }
}
