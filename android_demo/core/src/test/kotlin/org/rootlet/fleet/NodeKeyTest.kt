package org.rootlet.fleet

import java.nio.file.Files
import java.nio.file.attribute.PosixFilePermission
import java.security.KeyFactory
import java.security.KeyPairGenerator
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import java.security.spec.X509EncodedKeySpec
import java.util.Base64
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class NodeKeyTest {
    @get:Rule
    val folder = TemporaryFolder()

    @Test
    fun aSavedKeyIsTheSameKey() {
        val key = PemNodeKey.generate()
        val file = folder.root.resolve("node.pem")
        key.save(file)
        assertEquals(
            setOf(PosixFilePermission.OWNER_READ, PosixFilePermission.OWNER_WRITE),
            Files.getPosixFilePermissions(file.toPath()),
        )
        val loaded = PemNodeKey.load(file)
        assertArrayEquals(key.publicPem, loaded.publicPem) // computed from the private key alone
        assertTrue(verifies(key.publicPem, "hello", loaded.sign("hello".toByteArray())))
        assertFalse(verifies(key.publicPem, "hallo", loaded.sign("hello".toByteArray())))
        assertThrows(NodeKeyError::class.java) { key.save(file) }
    }

    @Test
    fun aKeyThatOthersMayReadIsRefused() {
        val file = folder.root.resolve("node.pem")
        PemNodeKey.generate().save(file)
        Files.setPosixFilePermissions(file.toPath(), PosixFilePermission.values().toSet())
        val error = assertThrows(NodeKeyError::class.java) { PemNodeKey.load(file) }
        assertTrue(error.message, "chmod 600" in error.message!!)
        assertThrows(NodeKeyError::class.java) { PemNodeKey.load(folder.root.resolve("absent")) }
    }

    @Test
    fun whatIsNoP256KeyIsRefused() {
        val good = String(PemNodeKey.generate().privatePem)
        val lines = good.trim().lines()
        val wrong = mapOf(
            "empty" to "",
            "half" to lines.take(2).joinToString("\n"),
            "no key" to "${lines.first()}\nAAAA\n${lines.last()}",
            "no base64" to "${lines.first()}\nA\n${lines.last()}",
            "P-384" to pem(KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp384r1")) }),
            "RSA" to pem(KeyPairGenerator.getInstance("RSA").apply { initialize(2048) }),
        )
        for ((name, text) in wrong) {
            assertThrows(name, NodeKeyError::class.java) { PemNodeKey.parse(text.toByteArray()) }
        }
        assertEquals(good, String(PemNodeKey.parse(good.toByteArray()).privatePem))
    }

    private fun pem(generator: KeyPairGenerator): String {
        val body = Base64.getEncoder().encodeToString(generator.generateKeyPair().private.encoded)
        return "-----BEGIN PRIVATE KEY-----\n$body\n-----END PRIVATE KEY-----\n"
    }

    private fun verifies(publicPem: ByteArray, text: String, signature: ByteArray): Boolean {
        val body = String(publicPem).trim().lines().drop(1).dropLast(1).joinToString("")
        val key = KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(Base64.getDecoder().decode(body)))
        return Signature.getInstance("SHA256withECDSA").run {
            initVerify(key)
            update(text.toByteArray())
            verify(signature)
        }
    }
}
