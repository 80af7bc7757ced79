package org.rootlet.device

import java.nio.file.Files
import java.util.Calendar
import org.junit.Assert.assertEquals
import org.junit.Test

class LedgerSummaryTest {
    private val folder = Files.createTempDirectory("rootlet-summary").toFile()
    private val ledger = Ledger(folder)

    private fun line(kind: String, bytes: Long, vararg more: Pair<String, Any?>) =
        ledger.append(kind, linkedMapOf<String, Any?>("bytes" to bytes, "protection" to "none") + more)

    private fun private(epsilon: Double, unit: String) = line(
        "update", 10, "protection" to "differential privacy", "epsilon" to epsilon, "delta" to 1e-5, "unit" to unit,
        "neighbours" to "add_or_remove",
    )

    private fun summary() = LedgerSummary.of(Ledger.read(folder))

    @Test
    fun nothingLeftSaysSo() {
        assertEquals(LedgerSummary(0, 0, 0, 0, 0, 0, emptyList()), summary())
        assertEquals("Nothing has left this phone.", Words.left(summary()))
        assertEquals("Epsilon spent: none; no private rounds.", Words.privacy(summary()))
    }

    @Test
    fun whatLeftIsCountedByKind() {
        line("update", 1000)
        line("update", 1001)
        line("metrics", 50)
        line("stage", 7)
        line("refusal", 3)
        ledger.append("repaired", mapOf("bytes_of_an_unfinished_line" to 99L))
        assertEquals(LedgerSummary(2, 2, 1, 1, 1, 2061, emptyList()), summary())
        assertEquals(
            "Left this phone: 2 rounds of training, 1 evaluation, 1 stage of secure rounds, 1 refusal; 2061 bytes in all. " +
                "2 rounds under no protection but TLS.",
            Words.left(summary()),
        )
        assertEquals("Epsilon spent: none; no private rounds.", Words.privacy(summary()))
    }

    @Test
    fun epsilonIsTheLastOfEachUnitAndNeverAlone() {
        private(0.25, "example")
        private(0.4312, "example")
        private(1.5, "device")
        line("update", 10)
        assertEquals(1, summary().plain)
        assertEquals(
            "Epsilon spent: 0.4312 at delta 1e-05 (per example, add_or_remove); 1.5 at delta 1e-05 (per device, add_or_remove).",
            Words.privacy(summary()),
        )
    }

    @Test
    fun aRoundCountsInItsLocalDayOnly() {
        line("update", 10)
        line("metrics", 10)
        val entries = Ledger.read(folder)
        val now = Calendar.getInstance()
        assertEquals(1, LedgerSummary.roundsToday(entries, now))
        val tomorrow = (now.clone() as Calendar).apply { add(Calendar.DAY_OF_MONTH, 1) }
        assertEquals(0, LedgerSummary.roundsToday(entries, tomorrow))
    }
}
