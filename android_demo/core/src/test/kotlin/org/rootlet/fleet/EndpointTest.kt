package org.rootlet.fleet

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class EndpointTest {
    @Test
    fun tlsIsUsedUnlessTheHostIsThisMachine() {
        val cases = mapOf(
            ("example.org:9092" to false) to "https://example.org:9092",
            ("example.org:9092" to true) to "https://example.org:9092",
            ("https://Example.org:9092/" to false) to "https://example.org:9092",
            ("127.0.0.1:9092" to false) to "http://127.0.0.1:9092",
            ("127.0.0.1:9092" to true) to "https://127.0.0.1:9092",
            ("http://localhost:80" to false) to "http://localhost:80",
            ("http://[::1]:80" to false) to "http://[::1]:80",
            ("https://127.0.0.1:1" to false) to "https://127.0.0.1:1",
        )
        for ((given, url) in cases) assertEquals(url, Endpoint.parse(given.first, given.second).url)
    }

    @Test
    fun plainHttpNeverLeavesThisMachine() {
        for (address in listOf("http://example.org:80", "http://10.0.0.1:80", "http://127.0.0.1.example.org:80")) {
            assertThrows(address, InsecureAddressError::class.java) { Endpoint.parse(address, false) }
        }
        assertThrows(InsecureAddressError::class.java) { Endpoint.parse("http://127.0.0.1:80", true) }
    }

    @Test
    fun whatIsNoAddressIsRefused() {
        val wrong = listOf(
            "", ":80", "example.org", "example.org:0", "example.org:65536", "example.org:x", "ftp://example.org:1",
            "example.org:1/path", "user@example.org:1", "example.org:1?q", "two words:1",
        )
        for (address in wrong) assertThrows(address, ConfigError::class.java) { Endpoint.parse(address, false) }
    }
}
