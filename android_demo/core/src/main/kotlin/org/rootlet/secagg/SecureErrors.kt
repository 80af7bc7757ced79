package org.rootlet.secagg

import org.rootlet.RootletException
import org.rootlet.fleet.RequestRefusedError

/** A round that this device does not take part in: its parameters, or what the server sent. */
class SecureRoundRefusedError(message: String) : RequestRefusedError(message)

/** An enrolment that is missing, damaged, expired or of another authority. */
class EnrolmentError(message: String, cause: Throwable? = null) : RootletException(message, cause)

internal fun refuse(why: String): Nothing = throw SecureRoundRefusedError(why)
