package org.rootlet.device

import java.io.File
import java.nio.file.Files
import org.junit.Assert.assertEquals
import org.junit.Assert.assertSame
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.fleet.Answer
import org.rootlet.fleet.FleetRequest
import org.rootlet.fleet.MetricRecord
import org.rootlet.wire.CanonicalJson

class LedgerTest {
    private val folder: File = Files.createTempDirectory("rootlet-ledger").toFile()
    private val file = File(folder, Ledger.FILE)
    private val repository = System.getProperty("rootlet.repository")
    private val update = linkedMapOf<String, Any?>(
        "server" to "fl.example.org:8443", "round" to "3", "bytes" to 12873L, "epsilon" to 0.1, "delta" to 1e-5,
        "tensors" to listOf("hidden0.lora_B", "é \"\\\n\u0001"), "private" to false, "mechanism" to null,
    )

    private fun python(program: String): String {
        val builder = ProcessBuilder(System.getProperty("rootlet.python"), "-c", program, folder.path).redirectErrorStream(true)
        builder.environment()["PYTHONPATH"] = listOf("device_runtime", "sdk").joinToString(":") { "$repository/$it" }
        val process = builder.start()
        val said = process.inputStream.readBytes().toString(Charsets.UTF_8)
        return "${process.waitFor()} ${said.trim()}"
    }

    private fun verifiedByPython() =
        python("import sys; from pathlib import Path; from rootlet import ledger; print(ledger.verify(Path(sys.argv[1])).hash)")

    @Test
    fun pythonVerifiesWhatWasWrittenHere() {
        val ledger = Ledger(folder)
        repeat(3) { ledger.append("update", update + ("round" to "$it")) }
        assertEquals("0 ${ledger.head.hash}", verifiedByPython())
        file.writeText(file.readText().replaceFirst("12873", "12874"))
        assertTrue(verifiedByPython().let { "1 " in it.take(2) && "line 1: its hash" in it })
    }

    @Test
    fun whatPythonWroteIsVerifiedAndGoneOnWithHere() {
        val program = "import sys; from pathlib import Path; from rootlet.ledger import Ledger; l = Ledger(Path(sys.argv[1]))\n" +
            "l.append('update', epsilon=0.30000000000000004, delta=1e-05, big=1e22, small=1.5e-7, whole=3.0, n=7, s='é \\\\ \\n', on=True, " +
            "deep={'b': [1.25, None], 'a': 2}, **{'\\U0001f600': 1, '\\uffff': 2})\nl.append('refusal', text='no')\nprint(l.head.hash)"
        val hash = python(program).removePrefix("0 ")
        assertEquals(LedgerHead(2, hash), Ledger.verify(folder))
        val ledger = Ledger(folder, known = LedgerHead(2, hash))
        ledger.append("update", update)
        assertEquals("0 ${ledger.head.hash}", verifiedByPython())
    }

    @Test
    fun doublesAreWrittenAsPythonWritesThem() {
        val values = listOf(0.1, 1e-5, 1e-4, 0.30000000000000004, 123456789.0, 1e15, 1e16, 1.5e-7, 5e-324, -2.5, 1.7976931348623157e308, 3.0, 100.0)
        val program = "print(' '.join(map(repr, [${values.joinToString(",")}])))"
        assertEquals(python(program), "0 " + values.joinToString(" ") { CanonicalJson.repr(it) })
    }

    @Test
    fun linesThatWereChangedRemovedMovedOrCutOffAreNoticed() {
        val ledger = Ledger(folder)
        repeat(4) { ledger.append("update", update + ("round" to "$it")) }
        val lines = file.readText().trimEnd().split("\n")
        val kept = ledger.head
        fun broken(words: String, left: List<String>) {
            file.writeText(left.joinToString("") { "$it\n" })
            val error = assertThrows(LedgerError::class.java) { Ledger.verify(folder) }
            assertTrue(error.message!!, words in error.message!!)
        }
        broken("it was changed", lines.map { it.replace("\"round\": \"1\"", "\"round\": \"9\"") })
        broken("does not follow", lines - lines[1])
        broken("does not follow", listOf(lines[1], lines[0], lines[2], lines[3]))
        broken("cut off", lines.take(2))
        broken("not an entry", lines.take(3) + "{}")
        File(folder, Ledger.HEAD).delete()
        broken("is missing", lines)
        folder.listFiles()!!.forEach { it.delete() }
        Ledger(folder).append("update", update)
        assertThrows(LedgerError::class.java) { Ledger(folder, known = kept) }
    }

    @Test
    fun aCrashAtAnyByteLosesAtMostTheLineThatWasUnderWay() {
        val ledger = Ledger(folder)
        ledger.append("update", update)
        val before = file.readBytes()
        val head = File(folder, Ledger.HEAD).readBytes()
        ledger.append("refusal", mapOf("text" to "no"))
        val after = file.readBytes()
        for (size in before.size..after.size) {
            file.writeBytes(after.copyOf(size))
            File(folder, Ledger.HEAD).writeBytes(head) // the crash came before the new head
            val found = Ledger.read(folder.also { Ledger(it) })
            val torn = size > before.size && size < after.size
            assertEquals("$size", if (torn) "repaired" else if (size == after.size) "refusal" else "update", found.last().kind)
        }
    }

    @Test
    fun anAnswerThatCannotBeWrittenDownDoesNotLeave() {
        val ledger = Ledger(folder)
        val given = Answer(mapOf("metrics" to MetricRecord(mapOf("loss" to 0.5))))
        val ledgered = Ledgered({ _, _ -> given }, ledger, "fl.example.org:8443", "digits 1")
        val request = FleetRequest(7, "2", "evaluate", emptyMap(), 10)
        assertSame(given, ledgered.answer(request) { false })
        assertEquals(listOf("metrics", "7", "2"), Ledger.read(folder).single().let { listOf(it.kind, it.fields["run"], it.fields["round"]) })
        file.delete()
        file.mkdir() // a line can no longer be added
        val refused = ledgered.answer(request) { false }!!
        assertEquals("this device cannot keep its ledger", refused.error)
        assertEquals(emptyMap<String, Any>(), refused.records)
        assertEquals(null, Ledgered({ _, _ -> null }, ledger, "x", "y").answer(request) { true })
    }
}
