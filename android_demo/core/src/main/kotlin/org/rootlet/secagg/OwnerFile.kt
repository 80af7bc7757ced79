package org.rootlet.secagg

import java.io.File
import java.io.FileOutputStream
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import java.nio.file.attribute.PosixFileAttributeView
import java.nio.file.attribute.PosixFilePermission

/** Files that only their owner may read, and that a crash leaves as they were or as they shall be. */
internal object OwnerFile {
    private val OWNER_ONLY = setOf(PosixFilePermission.OWNER_READ, PosixFilePermission.OWNER_WRITE)

    /**
     * Puts a new file with [content] in the place of [file], on the disk when this returns; its folder is made if absent.
     *
     * @throws java.io.IOException the disk refused; [file] is as it was.
     */
    fun replace(file: File, content: ByteArray) {
        file.parentFile?.mkdirs()
        val fresh = File("${file.path}.new")
        fresh.delete() // of a crash
        Files.createFile(fresh.toPath())
        if (Files.getFileAttributeView(fresh.toPath(), PosixFileAttributeView::class.java) != null) {
            Files.setPosixFilePermissions(fresh.toPath(), OWNER_ONLY) // before a secret is in it
        }
        FileOutputStream(fresh).use {
            it.write(content)
            it.fd.sync()
        }
        Files.move(fresh.toPath(), file.toPath(), StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING)
    }
}
