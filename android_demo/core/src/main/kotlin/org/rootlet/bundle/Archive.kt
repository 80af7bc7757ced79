package org.rootlet.bundle

import java.io.ByteArrayOutputStream
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.rootlet.ArchiveError
import org.rootlet.SizeLimitError
import org.rootlet.UnsafePathError

/** What a device is willing to hold; sizes in bytes. */
data class BundleLimits(
    val maxBundleBytes: Long = 1L shl 30,
    val maxEntries: Int = 16,
    val maxManifestBytes: Long = 1L shl 20,
    val maxGraphBytes: Long = 1L shl 26,
    val maxAdapterBytes: Long = 1L shl 28,
    val maxStateBytes: Long = 1L shl 30,
) {
    /** The largest size allowed for one entry. */
    fun forEntry(name: String): Long = when {
        name == MANIFEST_FILE || name == SIGNATURE_FILE -> maxManifestBytes
        name.endsWith(".onnx") -> maxGraphBytes
        name == ADAPTER_FILE -> maxAdapterBytes
        else -> maxBundleBytes
    }
}

/** One stored entry: where its header begins and what it holds. */
internal class ArchiveEntry(val name: String, val crc32: Int, val size: Long, val headerOffset: Long) {
    /** The header in front of the data, with the padding that aligns it. */
    val localHeader: ByteArray = run {
        val alignment = if (name == BASE_FILE) LARGE_ALIGNMENT else ALIGNMENT
        val unpadded = headerOffset + LOCAL_BYTES + name.length + PADDING_BYTES
        val zeros = Math.floorMod(-unpadded, alignment.toLong()).toInt()
        littleEndian(LOCAL_BYTES + name.length + PADDING_BYTES + zeros)
            .putInt(LOCAL_SIGNATURE)
            .common()
            .putShort(name.length.toShort())
            .putShort((PADDING_BYTES + zeros).toShort())
            .put(name.toByteArray(Charsets.US_ASCII))
            .putShort(PADDING_ID.toShort())
            .putShort((2 + zeros).toShort())
            .putShort(alignment.toShort())
            .array()
    }

    /** The entry's line in the directory at the end of the file. */
    val centralHeader: ByteArray
        get() = littleEndian(CENTRAL_BYTES + name.length)
            .putInt(CENTRAL_SIGNATURE)
            .putShort(VERSION)
            .common()
            .putShort(name.length.toShort())
            .put(ByteArray(12)) // no extra field, no comment, first disk, no attributes
            .putInt(headerOffset.toInt())
            .put(name.toByteArray(Charsets.US_ASCII))
            .array()

    val dataOffset: Long get() = headerOffset + localHeader.size

    val endOffset: Long get() = dataOffset + size

    /** Version, flags, method, time, date, CRC-32 and both sizes. */
    private fun ByteBuffer.common(): ByteBuffer = putShort(VERSION).putShort(0).putShort(0).putShort(0)
        .putShort(DOS_DATE).putInt(crc32).putInt(size.toInt()).putInt(size.toInt())

    private companion object {
        const val ALIGNMENT = 64
        const val LARGE_ALIGNMENT = 4096
        const val LOCAL_SIGNATURE = 0x04034b50
        const val VERSION: Short = 10
        const val DOS_DATE: Short = 0x21 // 1 January 1980, the earliest that a zip can say
        const val PADDING_ID = 0xD935 // the alignment field that zipalign writes
        const val PADDING_BYTES = 6
        const val LOCAL_BYTES = 30
    }
}

/**
 * A mapped archive: a zip of stored entries in one canonical encoding, read as hostile input
 * (`docs/bundle.md`). The headers are encoded again and compared with the file: what is not content
 * cannot carry anything. The file is opened once, and what was verified is what is used; the mapping
 * follows the file, so keep bundles where only the app can write.
 *
 * @throws ArchiveError unreadable, or not in the canonical encoding.
 * @throws UnsafePathError an entry's name is not a plain top-level name.
 * @throws SizeLimitError the file, an entry or the number of entries exceeds the limits.
 */
class Archive(path: File, limits: BundleLimits) : Closeable {
    private val file: RandomAccessFile
    private val view: ByteBuffer
    private val entries: Map<String, ArchiveEntry>
    private var closed = false

    init {
        try {
            file = RandomAccessFile(path, "r")
        } catch (error: IOException) {
            throw ArchiveError("$path: cannot be read: ${error.message}", error)
        }
        try {
            view = mapped(path, limits)
            entries = readEntries(limits).associateBy { it.name }
            checkCanonical(entries.values.toList())
        } catch (error: Throwable) {
            file.close()
            throw error
        }
    }

    /** The names of all entries. */
    val names: Set<String> get() = entries.keys

    /** The entry's data, a read-only view of the mapping; null if there is none. */
    operator fun get(name: String): ByteBuffer? {
        if (closed) throw ArchiveError("the bundle is closed; keep it open as long as its trainers")
        return entries[name]?.let { span(it.dataOffset, it.endOffset) }
    }

    /** Closes the file; views held elsewhere keep the mapping until they go. */
    override fun close() {
        closed = true
        file.close()
    }

    private fun mapped(path: File, limits: BundleLimits): ByteBuffer {
        val size = file.length()
        if (size > limits.maxBundleBytes) {
            throw SizeLimitError("${path.name}: $size bytes; the limit is ${limits.maxBundleBytes}")
        }
        if (size < END_BYTES) throw ArchiveError("${path.name}: $size bytes; too short to be a bundle")
        return file.channel.map(FileChannel.MapMode.READ_ONLY, 0, size).order(ByteOrder.LITTLE_ENDIAN)
    }

    private fun readEntries(limits: BundleLimits): List<ArchiveEntry> {
        val end = view.limit() - END_BYTES
        if (view.getInt(end) != END_SIGNATURE) {
            throw ArchiveError("no zip directory at the end of the file: not a bundle, or truncated")
        }
        val count = unsigned16(end + 10)
        val length = unsigned32(end + 12)
        val start = unsigned32(end + 16)
        if (count > limits.maxEntries) throw SizeLimitError("$count entries; the limit is ${limits.maxEntries}")
        if (start + length != end.toLong()) {
            throw ArchiveError("the zip directory is not where the end of the file says")
        }
        val found = ArrayList<ArchiveEntry>()
        var offset = start.toInt()
        repeat(count) {
            val entry = readCentral(offset, end, limits)
            if (found.any { it.name == entry.name }) throw ArchiveError("the entry '${entry.name}' appears twice")
            found.add(entry)
            offset += CENTRAL_BYTES + entry.name.length
        }
        return found
    }

    private fun readCentral(offset: Int, end: Int, limits: BundleLimits): ArchiveEntry {
        if (offset + CENTRAL_BYTES > end) throw ArchiveError("the zip directory is shorter than its number of entries")
        val name = plainName(offset + CENTRAL_BYTES, unsigned16(offset + 28))
        if (unsigned16(offset + 8) and 1 != 0) {
            throw ArchiveError("$name: encrypted; the entries of a bundle are plain")
        }
        val method = unsigned16(offset + 10)
        if (method != 0) {
            throw ArchiveError("$name: compressed (method $method); the entries of a bundle are stored")
        }
        val stored = unsigned32(offset + 20)
        val size = unsigned32(offset + 24)
        if (stored != size) throw ArchiveError("$name: $stored bytes stored but $size declared")
        if (size > limits.forEntry(name)) {
            throw SizeLimitError("$name: $size bytes; the limit is ${limits.forEntry(name)}")
        }
        return ArchiveEntry(name, view.getInt(offset + 16), size, unsigned32(offset + 42))
    }

    private fun plainName(start: Int, length: Int): String {
        val raw = ByteArray(minOf(length, MAX_NAME_BYTES, view.limit() - start))
        for (i in raw.indices) raw[i] = view.get(start + i)
        val name = String(raw, Charsets.ISO_8859_1)
        if (!PLAIN_NAME.matches(name) || ".." in name) {
            throw UnsafePathError(
                "entry name '${name.take(100)}': the entries of a bundle have plain names at the top level " +
                    "(letters, digits, '.', '_', '-')",
            )
        }
        return name
    }

    private fun checkCanonical(entries: List<ArchiveEntry>) {
        var offset = 0L
        for (entry in entries) {
            if (entry.headerOffset != offset) {
                throw ArchiveError("${entry.name}: begins at ${entry.headerOffset}, not at $offset")
            }
            if (entry.endOffset > view.limit() || span(offset, entry.dataOffset) != ByteBuffer.wrap(entry.localHeader)) {
                throw ArchiveError("${entry.name}: its local header and the directory disagree")
            }
            offset = entry.endOffset
        }
        if (span(offset, view.limit().toLong()) != ByteBuffer.wrap(directory(entries, offset))) {
            throw ArchiveError(
                "the zip directory is not in the canonical encoding of a bundle: damaged, or written by another tool",
            )
        }
    }

    private fun directory(entries: List<ArchiveEntry>, start: Long): ByteArray {
        val out = ByteArrayOutputStream()
        for (entry in entries) out.write(entry.centralHeader, 0, entry.centralHeader.size)
        val end = littleEndian(END_BYTES).putInt(END_SIGNATURE).putInt(0)
            .putShort(entries.size.toShort()).putShort(entries.size.toShort())
            .putInt(out.size()).putInt(start.toInt()).putShort(0).array()
        out.write(end, 0, end.size)
        return out.toByteArray()
    }

    private fun span(start: Long, end: Long): ByteBuffer {
        val copy = view.duplicate()
        copy.limit(end.toInt())
        copy.position(start.toInt())
        return copy.slice().order(ByteOrder.LITTLE_ENDIAN)
    }

    private fun unsigned16(offset: Int): Int = view.getShort(offset).toInt() and 0xffff

    private fun unsigned32(offset: Int): Long = view.getInt(offset).toLong() and 0xffffffffL

    private companion object {
        const val END_BYTES = 22
        const val END_SIGNATURE = 0x06054b50
        const val MAX_NAME_BYTES = 4096
        val PLAIN_NAME = Regex("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
    }
}

private const val CENTRAL_BYTES = 46
private const val CENTRAL_SIGNATURE = 0x02014b50

private fun littleEndian(size: Int): ByteBuffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
