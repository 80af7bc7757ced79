package org.rootlet.fleet

import java.security.KeyStore
import java.security.Signature
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.rootlet.device.TestKeys

class KeyStoreNodeKeyTest {
    @get:Rule
    val folder = TemporaryFolder()

    private val keys by lazy { TestKeys(folder.root) }
    private val word = TestKeys.WORD.toCharArray()

    private fun open(store: KeyStore, make: () -> Unit = { throw AssertionError("there is one") }) =
        KeyStoreNodeKey.open(store, "node", word, make)

    @Test
    fun theKeyIsMadeOnceAndSigns() {
        val made = mutableListOf<String>()
        val empty = keys.store()
        val first = open(empty) {
            made += "one"
            keys.make("node")
            keys.store().let { empty.setKeyEntry("node", it.getKey("node", word), word, it.getCertificateChain("node")) }
        }
        val again = open(keys.store())
        assertEquals(listOf("one"), made)
        assertArrayEquals(first.publicPem, again.publicPem)
        assertTrue(String(first.publicPem).startsWith("-----BEGIN PUBLIC KEY-----\n"))
        val verified = Signature.getInstance("SHA256withECDSA").run {
            initVerify(keys.store().getCertificate("node").publicKey)
            update("hello".toByteArray())
            verify(again.sign("hello".toByteArray()))
        }
        assertTrue(verified)
    }

    @Test
    fun whatIsNoP256KeyIsRefused() {
        for (what in listOf(arrayOf("-keyalg", "EC", "-groupname", "secp384r1"), arrayOf("-keyalg", "RSA", "-keysize", "2048"))) {
            folder.root.resolve("keys.p12").delete()
            keys.make("node", *what)
            val error = assertThrows(what.last(), NodeKeyError::class.java) { open(keys.store()) }
            assertTrue(error.message, "not on P-256: erase, and enrol" in error.message!!)
        }
    }

    @Test
    fun aStoreThatGivesNoPairIsNamed() {
        val store = keys.store()
        assertThrows(NodeKeyError::class.java) { open(store) {} } // whoever makes keys made none
        store.setCertificateEntry("node", keys.run { make("other"); store() }.getCertificate("other"))
        val error = assertThrows(NodeKeyError::class.java) { open(store) }
        assertTrue(error.message, "no key pair 'node'" in error.message!!)
        keys.make("node")
        assertThrows(NodeKeyError::class.java) { KeyStoreNodeKey.open(keys.store(), "node", "wrong".toCharArray()) {} }
    }
}
