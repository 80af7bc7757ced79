package org.rootlet.device

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import org.rootlet.RootletException
import org.rootlet.wire.CanonicalJson
import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError
import org.rootlet.wire.replaceFile
import org.rootlet.wire.sha256
import org.rootlet.wire.toHex

/** The ledger is broken, or cannot be written. */
class LedgerError(message: String, cause: Throwable? = null) : RootletException(message, cause)

/** One line. [number] counts from 1 without gaps; [time] is the device's clock, in UTC. */
class LedgerEntry(
    val number: Long,
    val time: String,
    val kind: String,
    val fields: Map<String, Any?>,
    val previous: String,
    val hash: String,
)

/** Where a ledger ends: number and hash of its last entry. */
data class LedgerHead(val number: Long = 0, val hash: String = "0".repeat(64))

/**
 * What left the device: lines that are only ever added, each bound to all before it (`docs/ledger.md`), in the
 * files and bytes of the Python SDK: either verifies what the other wrote.
 *
 *     hash_n = SHA-256(hash_{n-1} || "\n" || canonical JSON of the entry's other fields)
 *
 * An entry is on the disk before [append] returns, and a crash leaves at most one line that the head does not
 * know. Who can write both files can forge both: against that helps a head that is kept elsewhere.
 *
 * @param folder made if absent; the whole chain is verified, and a line that a crash left unfinished taken out.
 * @param known a head that was kept elsewhere; the ledger must contain that entry.
 * @throws LedgerError the chain is broken, or the files cannot be used.
 */
class Ledger(private val folder: File, known: LedgerHead? = null) {
    private val file = File(folder, FILE)

    /** Number and hash of the last entry. */
    var head: LedgerHead
        private set

    init {
        folder.mkdirs()
        head = verify(folder, known)
        val torn = takeOutTornLine()
        writeHead()
        if (torn > 0) append("repaired", mapOf("bytes_of_an_unfinished_line" to torn))
    }

    /**
     * Adds an entry; it is on the disk when this returns.
     *
     * @param fields text, [Long], [Double], [Boolean], or lists of them; never content of a message.
     * @throws LedgerError the disk refused it; the ledger is as it was.
     */
    @Synchronized
    fun append(kind: String, fields: Map<String, Any?>): LedgerEntry {
        require(fields.keys.none { it in OWN }) { "fields ${fields.keys} hold one of the ledger's own: $OWN" }
        val body = linkedMapOf<String, Any?>("number" to head.number + 1, "time" to time(), "kind" to kind)
        body.putAll(fields)
        body["previous"] = head.hash
        val hash = hash(body)
        disk { write((CanonicalJson.line(body + ("hash" to hash)) + "\n").toByteArray()) }
        head = LedgerHead(head.number + 1, hash)
        writeHead()
        return LedgerEntry(head.number, body["time"] as String, kind, fields, body["previous"] as String, hash)
    }

    private fun write(line: ByteArray) {
        RandomAccessFile(file, "rw").use {
            val size = it.length()
            try {
                it.seek(size)
                it.write(line)
                it.fd.sync()
            } catch (error: IOException) {
                it.setLength(size)
                throw error
            }
        }
    }

    private fun writeHead() = disk {
        val line = CanonicalJson.line(linkedMapOf("number" to head.number, "hash" to head.hash))
        replaceFile(File(folder, HEAD), line.toByteArray())
    }

    private fun takeOutTornLine(): Long {
        if (!file.exists()) return 0
        val content = file.readBytes()
        val whole = content.lastIndexOf('\n'.code.toByte()) + 1
        if (whole < content.size) disk { RandomAccessFile(file, "rw").use { it.setLength(whole.toLong()) } }
        return (content.size - whole).toLong()
    }

    private fun <T> disk(work: () -> T): T = try {
        work()
    } catch (error: IOException) {
        throw LedgerError("the ledger in $folder cannot be used (${error.message}): make room", error)
    }

    companion object {
        const val FILE = "ledger.jsonl"
        const val HEAD = "ledger.head"
        private val OWN = setOf("number", "time", "kind", "previous", "hash")

        /**
         * The entries of a ledger, unverified; a last line without its end is none yet.
         *
         * @throws LedgerError a line is not an entry.
         */
        fun read(folder: File): List<LedgerEntry> {
            val file = File(folder, FILE)
            if (!file.exists()) return emptyList()
            return file.readBytes().toString(Charsets.UTF_8).split("\n").dropLast(1).mapIndexed { at, line -> parsed(at + 1, line) }
        }

        /**
         * Holds every line to the chain, and its end to the head.
         *
         * @return where it ends.
         * @throws LedgerError what is wrong, and in which line.
         */
        fun verify(folder: File, known: LedgerHead? = null): LedgerHead {
            val stored = storedHead(folder)
            val met = hashMapOf(0L to LedgerHead().hash)
            var head = LedgerHead()
            for ((at, entry) in read(folder).withIndex()) {
                val place = at + 1L
                if (entry.number != place || entry.previous != head.hash) {
                    throw LedgerError("line $place does not follow: a line was removed, inserted or moved. Keep the file as evidence")
                }
                if (hash(entry.fields + mapOf("number" to place, "time" to entry.time, "kind" to entry.kind, "previous" to entry.previous)) != entry.hash) {
                    throw LedgerError("line $place: its hash is not that of its content; it was changed. Keep the file as evidence")
                }
                head = LedgerHead(place, entry.hash)
                met[place] = entry.hash
            }
            if (stored == null && head.number > 1) throw LedgerError("$HEAD is missing: the end cannot be checked. Keep the file as evidence")
            val expected = stored ?: LedgerHead()
            if (head.number != expected.number && head.number != expected.number + 1) { // a crash may come between
                throw LedgerError("it ends with line ${head.number}, and $HEAD says ${expected.number}: lines were cut off or added")
            }
            for (each in listOf(expected, known ?: LedgerHead())) {
                if (met[each.number] != each.hash) throw LedgerError("line ${each.number} is not the one that was kept: the ledger was replaced")
            }
            return head
        }

        private fun parsed(place: Int, line: String): LedgerEntry = try {
            val found = StrictJson.parseObject(line.toByteArray(), keepNumbers = true)
            val fields = found.names.filter { it !in OWN }.associateWith { found.any(it) }
            LedgerEntry(found.long("number"), found.text("time"), found.text("kind"), fields, found.text("previous"), found.text("hash"))
        } catch (error: StrictJsonError) {
            throw LedgerError("line $place is not an entry (${error.message}); it was changed. Keep the file as evidence", error)
        }

        private fun storedHead(folder: File): LedgerHead? {
            val file = File(folder, HEAD)
            if (!file.exists()) return null
            return try {
                StrictJson.parseObject(file.readBytes()).let { LedgerHead(it.long("number"), it.text("hash")) }
            } catch (error: StrictJsonError) {
                throw LedgerError("$file is damaged (${error.message}): keep it, and the ledger, as evidence", error)
            }
        }

        private fun hash(body: Map<String, Any?>): String {
            val content = "${body["previous"]}\n${CanonicalJson.of(body - "previous")}".toByteArray()
            return sha256(content).toHex()
        }

        /** As a line has it: UTC, to the millisecond. */
        internal fun time(of: Date = Date()): String = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss.SSS'Z'", Locale.ROOT).run {
            timeZone = TimeZone.getTimeZone("UTC")
            format(of)
        }
    }
}
