package org.rootlet.wire

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class StrictJsonTest {
    private fun parse(text: String) = StrictJson.parse(text.toByteArray())

    @Test
    fun valuesOfEveryKind() {
        val found = parse(""" {"a": [1, -2.5e3, true, null, "x\u00e9\n\ud83d\ude00"], "b": {}} """)
        val inner = listOf(1L, -2500.0, true, null, "x\u00e9\n\ud83d\ude00")
        assertEquals(mapOf("a" to inner, "b" to emptyMap<String, Any?>()), found)
    }

    @Test
    fun whatIsNotStrictIsRefused() {
        val bad = listOf(
            "", "{", "[1,]", "{\"a\":1,\"a\":2}", "NaN", "Infinity", "1e999", "01", "+1", "'a'", "[1] 2",
            "\"\\ud800\"", "\"\u0001\"", "\"\\x\"", "[".repeat(500) + "]".repeat(500), "\ufeff1", "tru",
        )
        for (text in bad) assertThrows(text, StrictJsonError::class.java) { parse(text) }
        assertThrows(StrictJsonError::class.java) { StrictJson.parse(byteArrayOf(0x22, 0x80.toByte(), 0x22)) }
    }

    @Test
    fun fieldsAreTakenByKindAndTheRestIsUnknown() {
        val found = StrictJson.parseObject("""{"n": 3, "t": "x", "big": 123456789012345678901}""".toByteArray())
        assertEquals(3L, found.long("n"))
        assertEquals("x", found.text("t"))
        assertEquals("big: expected a whole number of 64 bits, got BigInteger",
            assertThrows(StrictJsonError::class.java) { found.long("big") }.message)
        assertThrows(StrictJsonError::class.java) { found.text("n") }
        assertThrows(StrictJsonError::class.java) { found.long("absent") }
        val unknown = StrictJson.parseObject("""{"n": 3, "m": true}""".toByteArray())
        unknown.long("n")
        assertEquals("the top level: unknown field 'm'",
            assertThrows(StrictJsonError::class.java) { unknown.finish() }.message)
        assertThrows(StrictJsonError::class.java) { unknown.long("m") }
    }
}
