package org.rootlet.demo

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.spec.ECGenParameterSpec
import org.rootlet.fleet.KeyStoreNodeKey

/** The key that identifies this phone to a server: in the Android Keystore, for signing only, and never out of it. */
object NodeKeys {
    private const val ALIAS = "node"
    private const val STORE = "AndroidKeyStore"

    /** The key, made at the first call. */
    fun open(): KeyStoreNodeKey = KeyStoreNodeKey.open(store(), ALIAS) {
        val what = KeyGenParameterSpec.Builder(ALIAS, KeyProperties.PURPOSE_SIGN)
            .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
            .setDigests(KeyProperties.DIGEST_SHA256)
            .build()
        KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, STORE).run {
            initialize(what)
            generateKeyPair()
        }
    }

    /** Destroys it: to the server, this phone is another from then on. */
    fun forget() = store().deleteEntry(ALIAS)

    private fun store(): KeyStore = KeyStore.getInstance(STORE).apply { load(null) }
}
