package org.rootlet.fleet

import java.nio.ByteBuffer
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class FleetObjectsTest {
    private fun dtype(name: Any?) = Dtype.values().first { it.numpy == name }

    @Test
    fun arraysAreWrittenAndReadAsNumpyDoes() {
        val cases = Vectors.list("npy")
        assertEquals(18, cases.size)
        for (case in cases) {
            val shape = (case["shape"] as List<*>).map { (it as Long).toInt() }
            val array = NpyArray(dtype(case["dtype"]), shape, Vectors.fromHex(case["data"]))
            assertEquals(case["npy"], Vectors.toHex(Npy.write(array)))
            assertEquals(array, Npy.read(Vectors.fromHex(case["npy"])))
        }
    }

    @Test
    fun fortranOrderBecomesCOrder() {
        val case = Vectors.map("fortran")
        val array = Npy.read(Vectors.fromHex(case["npy"]))
        assertEquals(listOf(2, 3, 4), array.shape)
        assertArrayEquals(FloatArray(24) { it.toFloat() }, array.floats(), 0f)
    }

    @Test
    fun arraysThatNumpyDoesNotWriteAreRefused() {
        val good = Npy.write(NpyArray.of(listOf(2, 3), FloatArray(6)))
        val text = String(good, Charsets.ISO_8859_1)
        val wrong = listOf(
            "",
            text.dropLast(1),
            text + "\u0000",
            text.replace("<f4", "|O8"),
            text.replace("<f4", ">f4"),
            text.replace("(2, 3)", "(3, 3)"),
            text.replace("(2, 3)", "(-2,-3)"),
            text.replace("(2, 3), }" + " ".repeat(16), "(4294967296, 4294967296), }".take(25)),
            text.replace("NUMPY", "NUMPX"),
            text.replace("\u0001\u0000", "\u0003\u0000"),
        )
        for (case in wrong) {
            assertThrows(case, ProtocolError::class.java) { Npy.read(case.toByteArray(Charsets.ISO_8859_1)) }
        }
        assertEquals(listOf(2, 3), Npy.read(good).shape)
    }

    @Test
    fun recordsOfValuesAreThoseOfPython() {
        val (config, metrics) = Vectors.map("config") to Vectors.map("metrics")
        val settings = ConfigRecord(Vectors.values(Vectors.asMap(config["values"])))
        assertEquals(config["body"], Vectors.toHex(Values.encode(settings)))
        assertEquals(config["body"], Vectors.toHex(Values.encode(Values.config(Vectors.fromHex(config["body"])))))
        val numbers = MetricRecord(Vectors.values(Vectors.asMap(metrics["values"])))
        assertEquals(metrics["body"], Vectors.toHex(Values.encode(numbers)))
        assertEquals(numbers.values, Values.metrics(Vectors.fromHex(metrics["body"])).values)
    }

    @Test
    fun valuesThatCannotTravelAreRefused() {
        for (value in listOf("text", true, listOf(1L, 1.0), java.math.BigInteger.ONE.shiftLeft(64), Any())) {
            assertThrows("$value", RecordError::class.java) { Values.encode(MetricRecord(mapOf("name" to value))) }
        }
        val config = Vectors.fromHex(Vectors.map("config")["body"])
        assertThrows(ProtocolError::class.java) { Values.metrics(config) } // text in a metric record
        assertThrows(ProtocolError::class.java) { Values.config(config + config) } // each name twice
        assertThrows(ProtocolError::class.java) { Values.config(config.copyOf(config.size - 1)) }
    }

    @Test
    fun aMessageHasTheObjectsOfPython() {
        val asked = Codec.readMessage(ByteBuffer.wrap(root().substringAfterNul()))
        val (objects, id) = FleetObjects.encode(asked, Vectors.records())
        assertEquals(Vectors.text("message_id"), id)
        assertEquals(Vectors.map("objects"), objects.contents.mapValues { Vectors.toHex(it.value) })
        val (message, records) = FleetDecoder(Vectors.objects()).message(id)
        assertEquals(asked, message)
        assertEquals(id, FleetObjects.encode(message, records).second)
        assertEquals((Vectors.records()["arrays"] as ArrayRecord).arrays, (records!!["arrays"] as ArrayRecord).arrays)
    }

    @Test
    fun aReplyHasTheObjectsOfPython() {
        val envelope = envelope()
        val now = 1.75e9 + 1
        val answers = mapOf(
            "reply_objects" to Answer(Vectors.records()),
            "failed_objects" to Answer(emptyMap(), "too much", ERROR_REFUSED),
        )
        for ((name, answer) in answers) {
            val (reply, expected) = envelope.seal(answer, now) to Vectors.map(name)
            assertEquals(expected["root"], Vectors.toHex(reply.contents.getValue(reply.messageId)))
            assertEquals(expected["message_id"], reply.messageId)
            assertEquals(expected["ids"], reply.contents.keys.toList())
        }
    }

    @Test
    fun everyMissingOrChangedObjectIsNoticed() {
        val objects = Vectors.objects()
        val root = Vectors.text("message_id")
        for ((id, content) in objects) {
            assertThrows(ProtocolError::class.java) { FleetDecoder(objects - id).message(root) }
            FleetObjects.check(id, content)
            val changed = content.clone().also { it[it.size / 2] = (it[it.size / 2] + 1).toByte() }
            assertThrows(ProtocolError::class.java) { FleetObjects.check(id, changed) }
            val headless = content.clone().also { it[0] = 'X'.code.toByte() }
            assertThrows(ProtocolError::class.java) { FleetDecoder(objects + (id to headless)).message(root) }
            val longer = content + 0
            assertThrows(ProtocolError::class.java) { FleetDecoder(objects + (id to longer)).message(root) }
        }
    }

    @Test
    fun theLimitsHoldWhateverIsRepeated() {
        val (objects, root) = Vectors.objects() to Vectors.text("message_id")
        // Twelve reads: `same` refers to the objects of `layer.a` once more.
        FleetDecoder(objects, Limits(objects = 11)).message(root)
        assertThrows(ProtocolError::class.java) { FleetDecoder(objects, Limits(objects = 10)).message(root) }
        val total = objects.values.sumOf { it.size.toLong() }
        assertThrows(ProtocolError::class.java) { FleetDecoder(objects, Limits(messageBytes = total)).message(root) }
        assertThrows(ProtocolError::class.java) { FleetDecoder(objects, Limits(valuesBytes = 100)).message(root) }
        val tree = envelope().tree
        assertTrue(FleetObjects.treeIds(tree).toSet() == objects.keys)
        assertThrows(ProtocolError::class.java) { FleetObjects.treeIds(tree, Limits(objects = 5)) }
        assertThrows(ProtocolError::class.java) { FleetObjects.treeIds(ObjectTree("../../etc")) }
    }

    private fun root(): ByteArray = Vectors.objects().getValue(Vectors.text("message_id"))

    private fun ByteArray.substringAfterNul() = copyOfRange(indexOf(0) + 1, size)

    private fun envelope(): Envelope {
        val calls = FleetCallsTest.calls { Vectors.bytes("pulled") }
        return calls.pullMessages()!!
    }
}
