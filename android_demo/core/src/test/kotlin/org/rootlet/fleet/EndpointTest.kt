package org.rootlet.fleet

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class EndpointTest {
    private fun url(address: String, certified: Boolean = false) = FleetTransport.endpoint(address, certified).toString()

    @Test
    fun tlsIsTheDefaultBeyondThisMachine() {
        assertEquals("https://fl.example.org:8443/", url("fl.example.org:8443"))
        assertEquals("https://127.0.0.1:8443/", url("127.0.0.1:8443", certified = true))
        assertEquals("http://127.0.0.1:8443/", url("127.0.0.1:8443"))
        assertEquals("http://localhost:1/", url("http://localhost:1"))
        assertEquals("https://[::2]:99/", url("[::2]:99"))
    }

    @Test
    fun whatIsNoSafeAddressIsRefused() {
        for (address in listOf("", "host", "host:0", "host:70000", "ftp://host:1", "host:1/path", "user@host:1")) {
            assertThrows(address, IllegalArgumentException::class.java) { url(address) }
        }
        assertThrows(IllegalArgumentException::class.java) { url("http://fl.example.org:80") }
        assertThrows(IllegalArgumentException::class.java) { url("http://10.0.0.1:80") }
        assertThrows(IllegalArgumentException::class.java) { url("http://127.0.0.1:80", certified = true) }
    }
}
