package org.rootlet.fleet

import org.rootlet.RootletException

/** The server cannot be reached, or refuses; [retryable] where the same call may succeed later. */
open class FleetException(message: String, val retryable: Boolean = false, cause: Throwable? = null) :
    RootletException(message, cause)

/** No answer; nobody knows whether the request arrived. */
open class ConnectionFailedError(message: String, cause: Throwable? = null) : FleetException(message, true, cause)

/** 429 or 5xx. */
class ServerBusyError(message: String) : ConnectionFailedError(message)

/** The server refuses this node's signature. */
class AuthenticationError(message: String) : FleetException(message)

/** The server's answer is not what the protocol allows. */
class ProtocolError(message: String, cause: Throwable? = null) : FleetException(message, cause = cause)

/** A record that is missing, unknown, of the wrong type or out of bounds. */
class RecordError(message: String) : RootletException(message)

/** The server counts this key as online, or does not know it. */
class NodeStillActiveError(message: String) : FleetException(message, true)

/** The run that a message belongs to is over. */
class RunEndedError(message: String) : FleetException(message)

/** The server no longer has a message, or no longer wants its answer. */
class MessageGoneError(message: String) : FleetException(message)

/** Any other refusal, with Flower's code. */
class ServerRefusedError(message: String, val status: Int, val code: Int) : FleetException(message)

/** The device does not accept a request: another bundle, or beyond its bounds. */
class RequestRefusedError(message: String) : RootletException(message)
