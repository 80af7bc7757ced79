package org.rootlet.demo

import android.security.keystore.KeyGenParameterSpec
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import org.rootlet.fleet.NodeKey
import org.rootlet.fleet.publicPem

/** The device's node key in the Android Keystore: the private part never leaves it, and dies with the app. */
class KeystoreNodeKey : NodeKey {
    private val store = KeyStore.getInstance(PROVIDER).also { it.load(null) }

    init {
        if (!store.containsAlias(ALIAS)) {
            val wanted = KeyGenParameterSpec.Builder(ALIAS, PURPOSE_SIGN)
                .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
                .setDigests("SHA-256")
                .build()
            KeyPairGenerator.getInstance("EC", PROVIDER).run {
                initialize(wanted)
                generateKeyPair()
            }
        }
    }

    override val publicPem: ByteArray = publicPem(store.getCertificate(ALIAS).publicKey)

    override fun sign(content: ByteArray): ByteArray = Signature.getInstance("SHA256withECDSA").run {
        initSign(store.getKey(ALIAS, null) as PrivateKey)
        update(content)
        sign()
    }

    /** Forgets the key: the server then knows another device. */
    fun delete() = store.deleteEntry(ALIAS)

    private companion object {
        const val PROVIDER = "AndroidKeyStore"
        const val ALIAS = "node"

        /** `KeyProperties.PURPOSE_SIGN`. */
        const val PURPOSE_SIGN = 4
    }
}
