package org.rootlet.fleet

import org.rootlet.RootletException

/** Root of what can go wrong between this device and the server; the names are those of the Python SDK. */
open class FleetError(message: String, cause: Throwable? = null) : RootletException(message, cause) {
    /** Whether the same call may succeed later without anybody changing anything. */
    open val retryable: Boolean get() = false
}

/** No answer after the retries. */
open class ConnectionFailedError(message: String, cause: Throwable? = null) : FleetError(message, cause) {
    override val retryable: Boolean get() = true
}

/** The server answers, but only with 429 or 5xx. */
class ServerBusyError(message: String) : ConnectionFailedError(message)

/** Plain HTTP to anything but this machine. */
class InsecureAddressError(message: String) : FleetError(message)

/** The server does not accept this node's signature. */
class AuthenticationError(message: String) : FleetError(message)

/** The server refuses to activate this key: it counts it as online, or does not know it. */
class NodeStillActiveError(message: String) : FleetError(message) {
    override val retryable: Boolean get() = true
}

/** The run that a message belongs to has finished or was stopped. */
class RunEndedError(message: String) : FleetError(message)

/** The server no longer has (or never got) the objects of a message that it announced. */
class MessageGoneError(message: String) : FleetError(message)

/**
 * A refusal without a class of its own.
 *
 * @property status HTTP status.
 * @property code Flower's error code; 0 where the answer names none.
 */
class ServerRefusedError(message: String, val status: Int, val code: Long) : FleetError(message)

/** An answer that is malformed, too large or does not match its hash. */
class ProtocolError(message: String, cause: Throwable? = null) : FleetError(message, cause)

/** A node key that cannot be read or used. */
class NodeKeyError(message: String, cause: Throwable? = null) : RootletException(message, cause)

/** Records that do not follow rootlet's contract. */
class RecordError(message: String) : RootletException(message)

/** A well-formed request that this device does not accept. */
open class RequestRefusedError(message: String) : RootletException(message)

/** A configuration value outside its bounds. */
class ConfigError(message: String, cause: Throwable? = null) : RootletException(message, cause)
