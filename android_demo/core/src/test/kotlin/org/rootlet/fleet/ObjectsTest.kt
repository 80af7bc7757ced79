package org.rootlet.fleet

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.rootlet.wire.FloatTensor

class ObjectsTest {
    private val limits = FleetLimits()
    private val records = mapOf(
        "arrays" to Record.Arrays(
            mapOf("a \"b\"" to FloatTensor(longArrayOf(2, 3), FloatArray(6) { it - 2.5f }), "s" to FloatTensor(longArrayOf(), floatArrayOf(7f))),
        ),
        "config" to Record.Config(mapOf("n" to -3L, "rate" to 0.1, "on" to true, "name" to "é", "raw" to byteArrayOf(0, -1))),
        "metrics" to Record.Metrics(mapOf("big" to Long.MIN_VALUE, "zero" to 0.0)),
    )

    private fun sealed(): Pair<ObjectSet, String> = ObjectSet().let { it to it.addMessage(ByteArray(0), records) }

    @Test
    fun recordsComeBack() {
        val (objects, id) = sealed()
        val (_, found) = ObjectReader(objects.contents, limits).message(id)
        assertEquals(records.keys, found!!.keys)
        val arrays = (found["arrays"] as Record.Arrays).arrays
        assertArrayEquals(FloatArray(6) { it - 2.5f }, arrays.getValue("a \"b\"").values, 0f)
        assertArrayEquals(longArrayOf(), arrays.getValue("s").shape)
        val config = (found["config"] as Record.Config).values
        assertEquals(listOf(-3L, 0.1, true, "é"), listOf("n", "rate", "on", "name").map { config[it] })
        assertArrayEquals(byteArrayOf(0, -1), config["raw"] as ByteArray)
        assertEquals(mapOf("big" to Long.MIN_VALUE, "zero" to 0.0), (found["metrics"] as Record.Metrics).values)
        assertEquals(objects.contents.keys, objects.tree(id).ids(limits).toSet())
    }

    @Test
    fun aFlippedByteAnywhereIsNoticedByTheHash() {
        val (objects, _) = sealed()
        for ((id, content) in objects.contents) {
            content[content.size / 2] = (content[content.size / 2] + 1).toByte()
            assertTrue(ObjectSet.sha256(content) != id)
        }
    }

    @Test
    fun hostileObjectsAreRefused() {
        fun refused(words: String, contents: Map<String, ByteArray>, root: String, limits: FleetLimits = this.limits) {
            val error = assertThrows(ProtocolError::class.java) { ObjectReader(contents, limits).message(root) }
            assertTrue(error.message!!, words in error.message!!)
        }
        val (objects, id) = sealed()
        refused("missing", objects.contents - objects.contents.keys.first(), id)
        refused("outgrows", objects.contents, id, FleetLimits(objects = 3))
        refused("outgrow", objects.contents, id, FleetLimits(valuesBytes = 3))
        refused("outgrows", objects.contents, id, FleetLimits(messageBytes = 100))
        refused("not a Message", objects.contents, objects.contents.keys.first())
        refused("malformed head", mapOf("x" to "Message  7\u0000ab".toByteArray()), "x")
        val wrong = ObjectSet()
        val body = """{"a":"${"0".repeat(64)}"}""".toByteArray()
        val root = wrong.add("Message", listOf(wrong.add("RecordDict", emptyList(), body)), ByteArray(0))
        refused("other objects", wrong.contents, root)
        assertThrows(ProtocolError::class.java) { ObjectTree("../x", emptyList()).ids(limits) }
    }

    @Test
    fun arraysThatAreNotNumpysFloatsAreRefused() {
        val good = Npy.write(FloatTensor(longArrayOf(3), floatArrayOf(1f, 2f, 3f)))
        assertEquals(0, (good.size - 12) % 64)
        assertArrayEquals(floatArrayOf(1f, 2f, 3f), Npy.read(good).values, 0f)
        val text = String(good, Charsets.ISO_8859_1)
        val bad = listOf(
            text.replace("<f4", "|O8"), text.replace("(3,)", "(4,)"), text.dropLast(1), text.replace("NUMPY", "NUMPZ"), "",
        )
        for (each in bad) assertThrows(ProtocolError::class.java) { Npy.read(each.toByteArray(Charsets.ISO_8859_1)) }
    }
}
