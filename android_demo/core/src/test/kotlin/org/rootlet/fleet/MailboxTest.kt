package org.rootlet.fleet

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class MailboxTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val envelope = FleetCallsTest.calls { Vectors.bytes("pulled") }.pullMessages()!!

    @Test
    fun everyStageOutlivesARestart() {
        assertEquals(Stage.EMPTY, restarted().stage)
        restarted().pulled(envelope)
        assertEquals(Stage.PULLED to envelope.metadata, restarted().stage to restarted().envelope!!.metadata)
        assertEquals(envelope.tree, restarted().envelope!!.tree)
        restarted().fetched(Vectors.objects())
        val fetched = restarted()
        assertEquals(Stage.FETCHED, fetched.stage)
        assertEquals(Vectors.objects().keys, fetched.contents.keys)
        val reply = envelope.seal(Answer(Vectors.records()), FleetCallsTest.NOW)
        fetched.answered(reply)
        val answered = restarted()
        assertEquals(Stage.ANSWERED to reply.message, answered.stage to answered.reply!!.message)
        assertEquals(reply.tree, answered.reply!!.tree)
        for ((id, content) in reply.contents) assertArrayEquals(content, answered.reply!!.contents[id])
        answered.clear()
        assertEquals(Stage.EMPTY, restarted().stage)
    }

    @Test
    fun aDamagedFileCountsAsAbsent() {
        restarted().let {
            it.pulled(envelope)
            it.fetched(Vectors.objects())
        }
        val file = folder.root.resolve("message")
        val whole = file.readBytes()
        val objectsStart = whole.size - Vectors.objects().values.sumOf { it.size + 4 }
        for (position in objectsStart until whole.size step 7) {
            file.writeBytes(whole.clone().also { it[position] = (it[position] + 1).toByte() })
            assertEquals("byte $position", Stage.EMPTY, restarted().stage)
        }
        for (length in 0 until whole.size step 11) {
            file.writeBytes(whole.copyOf(length))
            assertEquals("$length bytes", Stage.EMPTY, restarted().stage)
            assertNull(restarted().envelope)
        }
        file.writeBytes(whole)
        assertEquals(Stage.FETCHED, restarted().stage)
    }

    @Test
    fun theNodeIdIsOfOneServerAndOneKey() {
        val (key, other) = "key".toByteArray() to "other".toByteArray()
        restarted().rememberNode("host:1", key, FleetCallsTest.NODE)
        assertEquals(FleetCallsTest.NODE, restarted().nodeId("host:1", key))
        assertEquals(0L, restarted().nodeId("host:2", key))
        assertEquals(0L, restarted().nodeId("host:1", other))
        folder.root.resolve("node").writeText("garbage")
        assertEquals(0L, restarted().nodeId("host:1", key))
    }

    private fun restarted() = Mailbox(folder.root)
}
