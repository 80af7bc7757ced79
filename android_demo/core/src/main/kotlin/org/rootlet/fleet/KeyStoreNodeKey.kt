package org.rootlet.fleet

import java.security.GeneralSecurityException
import java.security.KeyStore
import java.security.PrivateKey
import java.security.PublicKey
import java.security.Signature
import java.security.interfaces.ECKey

/**
 * A P-256 node key that a key store holds. The private key is only ever used through its handle: that of the Android
 * Keystore has no bytes, and never leaves the phone's secure hardware where it has one.
 */
class KeyStoreNodeKey private constructor(private val privateKey: PrivateKey, publicKey: PublicKey) : NodeKey {
    override val publicPem: ByteArray = publicPem(publicKey)

    /** @throws NodeKeyError the key store no longer lets it be used. */
    override fun sign(content: ByteArray): ByteArray = try {
        Signature.getInstance("SHA256withECDSA").run {
            initSign(privateKey)
            update(content)
            sign()
        }
    } catch (error: GeneralSecurityException) {
        throw NodeKeyError("the key store does not let the node key sign (${error.message}): erase, and enrol this device anew", error)
    }

    companion object {
        /**
         * The key under [alias].
         *
         * @param password of the entry; the Android Keystore has none.
         * @param make puts a new P-256 key there, where there is none.
         * @throws NodeKeyError the store refuses, or what it holds there is no P-256 key.
         */
        fun open(store: KeyStore, alias: String, password: CharArray? = null, make: () -> Unit): KeyStoreNodeKey = try {
            if (!store.containsAlias(alias)) make()
            val key = store.getKey(alias, password) as? PrivateKey
            val public = store.getCertificate(alias)?.publicKey
            if (key == null || public == null) throw NodeKeyError("the key store holds no key pair '$alias': erase, and enrol this device anew")
            if (public !is ECKey || !isP256(public)) {
                throw NodeKeyError("the key '$alias' of the key store is not on P-256: erase, and enrol this device anew")
            }
            KeyStoreNodeKey(key, public)
        } catch (error: GeneralSecurityException) {
            throw NodeKeyError("the key store does not give the node key '$alias': ${error.message}", error)
        }
    }
}
