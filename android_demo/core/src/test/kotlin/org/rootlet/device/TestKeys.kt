package org.rootlet.device

import java.io.File
import java.security.KeyStore
import java.util.Base64

/** A key store in a file, with keys that the JDK's keytool makes. */
class TestKeys(folder: File) {
    private val file = File(folder, "keys.p12")

    /** Makes a pair; [what] are keytool's options for it. */
    fun make(alias: String, vararg what: String = arrayOf("-keyalg", "EC", "-groupname", "secp256r1")) {
        val keytool = File(System.getProperty("java.home"), "bin/keytool").path
        val command = listOf(
            keytool, "-genkeypair", "-keystore", file.path, "-storetype", "PKCS12", "-storepass", WORD, "-alias", alias,
            "-dname", "CN=$alias", *what,
        )
        val process = ProcessBuilder(command).redirectErrorStream(true).start()
        val said = process.inputStream.readBytes().toString(Charsets.UTF_8)
        check(process.waitFor() == 0) { said }
    }

    /** The store as it is now. */
    fun store(): KeyStore = KeyStore.getInstance("PKCS12").apply {
        if (file.exists()) file.inputStream().use { load(it, WORD.toCharArray()) } else load(null, null)
    }

    /** The certificate of a pair, made if it is not there. */
    fun certificatePem(alias: String): String {
        if (!store().containsAlias(alias)) make(alias)
        val body = Base64.getMimeEncoder(64, "\n".toByteArray()).encodeToString(store().getCertificate(alias).encoded)
        return "-----BEGIN CERTIFICATE-----\n$body\n-----END CERTIFICATE-----\n"
    }

    companion object {
        const val WORD = "a-password"
    }
}
