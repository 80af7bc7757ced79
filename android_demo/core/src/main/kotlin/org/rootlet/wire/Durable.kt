package org.rootlet.wire

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.nio.file.StandardOpenOption
import java.nio.file.attribute.PosixFileAttributeView
import java.nio.file.attribute.PosixFilePermission
import java.security.MessageDigest

private val OWNER_ONLY = setOf(PosixFilePermission.OWNER_READ, PosixFilePermission.OWNER_WRITE)

/**
 * Replaces [file] by [parts], one after the other: at once or not at all, also in a crash or a power cut. Only its
 * owner may read it; its folder is made if absent.
 *
 * The content reaches the disk before the name does (else the new name could be left with no content), and the name
 * before this returns, where the platform lets a folder be opened: Linux and Android do, Windows does not.
 *
 * @throws java.io.IOException the disk is full, or refuses; the file is as it was, or wholly the new one.
 */
internal fun replaceFile(file: File, vararg parts: ByteArray) {
    val folder = file.absoluteFile.parentFile
    folder.mkdirs()
    val fresh = File("${file.path}.new")
    fresh.delete() // of a crash
    try {
        Files.createFile(fresh.toPath())
        if (Files.getFileAttributeView(fresh.toPath(), PosixFileAttributeView::class.java) != null) {
            Files.setPosixFilePermissions(fresh.toPath(), OWNER_ONLY) // before a secret is in it
        }
        FileOutputStream(fresh).use {
            for (part in parts) it.write(part)
            it.fd.sync()
        }
        Files.move(fresh.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING)
    } catch (error: IOException) {
        fresh.delete() // half of a secret is one too
        throw error
    }
    opened(folder)?.use { it.force(true) }
}

private fun opened(folder: File): FileChannel? = try {
    FileChannel.open(folder.toPath(), StandardOpenOption.READ)
} catch (_: IOException) {
    null
}

/** SHA-256 of the parts, one after the other. */
internal fun sha256(vararg parts: ByteArray): ByteArray = MessageDigest.getInstance("SHA-256").run {
    for (part in parts) update(part)
    digest()
}

/** SHA-256 of what is left in the buffer, which stays where it is. */
internal fun sha256(content: ByteBuffer): ByteArray = MessageDigest.getInstance("SHA-256").run {
    update(content.duplicate())
    digest()
}

/** Lower-case hexadecimal. */
internal fun ByteArray.toHex(): String = joinToString("") { "%02x".format(it) }
