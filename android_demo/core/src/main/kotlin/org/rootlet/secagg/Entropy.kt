package org.rootlet.secagg

import java.security.SecureRandom

/** Where every secret, every nonce and all noise of a secure round comes from: the platform's own generator. */
internal object Entropy {
    val source = SecureRandom()

    fun bytes(count: Int): ByteArray = ByteArray(count).also(source::nextBytes)
}
