package org.rootlet.wire

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.attribute.PosixFilePermissions
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class DurableTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun aFileIsReplacedAsAWholeForItsOwnerAlone() {
        val file = File(folder.root, "a/b/kept")
        replaceFile(file, "first, and longer".toByteArray())
        File("${file.path}.new").writeText("of a crash") // which stopped between the writing and the renaming
        replaceFile(file, "sec".toByteArray(), "ond".toByteArray())
        assertEquals("second", file.readText())
        assertEquals("rw-------", PosixFilePermissions.toString(Files.getPosixFilePermissions(file.toPath())))
        assertEquals(listOf("kept"), file.parentFile.list()!!.toList())
    }

    @Test
    fun whatCannotBeReplacedIsAsItWasAndNothingLiesBeside() {
        val taken = folder.newFolder("taken")
        val inside = File(taken, "content").apply { writeText("kept") }
        assertThrows(IOException::class.java) { replaceFile(taken, "secret".toByteArray()) }
        assertEquals("kept", inside.readText())
        assertEquals(listOf("taken"), folder.root.list()!!.toList())
    }

    /** FIPS 180-2, appendix B.1. */
    @Test
    fun digests() {
        val known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assertEquals(known, sha256("abc".toByteArray()).toHex())
        assertArrayEquals(sha256("abc".toByteArray()), sha256("a".toByteArray(), "bc".toByteArray()))
        val buffer = ByteBuffer.wrap("xabc".toByteArray()).apply { position(1) }
        assertEquals(known, sha256(buffer).toHex())
        assertEquals(1, buffer.position())
    }
}
