package org.rootlet.device

import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.fleet.ConfigError
import org.rootlet.fleet.InsecureAddressError

class FederationSettingsTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun anAddressIsHttpsWhateverWasTyped() {
        assertEquals("https://fl.example.org:8443", FederationSettings.of(" fl.example.org:8443 ", "").address)
        assertEquals("https://fl.example.org:8443", FederationSettings.of("https://fl.example.org:8443/", "").address)
        assertEquals("https://127.0.0.1:9092", FederationSettings.of("127.0.0.1:9092", "").address)
    }

    @Test
    fun plainHttpIsRefusedToThisMachineToo() {
        for (address in listOf("http://fl.example.org:8443", "http://127.0.0.1:9092", "http://localhost:1")) {
            val error = assertThrows(address, InsecureAddressError::class.java) { FederationSettings.of(address, "") }
            assertTrue(error.message, "give https://HOST:PORT" in error.message!!)
        }
    }

    @Test
    fun whatIsNoAddressOrNoCertificateIsRefused() {
        for (address in listOf("", "fl.example.org", "ftp://fl.example.org:1", "fl.example.org:99999", "a b:1")) {
            assertThrows(address, ConfigError::class.java) { FederationSettings.of(address, "") }
        }
        for (authority in listOf("hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")) {
            val error = assertThrows(authority, ConfigError::class.java) { FederationSettings.of("a:1", authority) }
            assertTrue(error.message, "paste the PEM text" in error.message!!)
        }
    }

    @Test
    fun settingsAreKeptAndForgotten() {
        val pem = TestKeys(folder.root).certificatePem("node")
        FederationSettings.of("fl.example.org:8443", pem).save(folder.root)
        val found = FederationSettings.load(folder.root)!!
        assertEquals("https://fl.example.org:8443", found.address)
        assertEquals(pem.trim(), found.authorityPem)
        FederationSettings.of("fl.example.org:8443", "").save(folder.root)
        assertNull(FederationSettings.load(folder.root)!!.authorityPem)
        for (damage in listOf("{", "{}", """{"address": "http://a:1", "authority": []}""", """{"address": "a:x", "authority": []}""")) {
            folder.root.resolve("federation.json").writeText(damage)
            assertNull(damage, FederationSettings.load(folder.root))
        }
        FederationSettings.of("a:1", "").save(folder.root)
        FederationSettings.forget(folder.root)
        assertNull(FederationSettings.load(folder.root))
    }
}
