package org.rootlet.fleet

import org.rootlet.wire.StrictJson
import org.rootlet.wire.StrictJsonError

private const val REGISTER =
    "its operator adds the public key to the folder of rootlet serve --node-keys and starts that again; " +
        "on another SuperLink: flwr supernode register <public key>"

internal const val PUBLIC_KEY_IN_USE = 23L
internal const val REGISTRATION_DISABLED = 2001L
internal const val ACTIVATION_FAILED = 2004L
internal const val DEACTIVATION_FAILED = 2005L
internal const val UNREGISTRATION_FAILED = 2006L
internal const val RUN_STATUS_NOT_ALLOWED = 2007L

/**
 * The error for an answer with a status other than 200, 401, 429 and 5xx.
 *
 * @param content the body; Flower sends JSON with `code` and `detail`.
 */
internal fun refusal(path: String, status: Int, content: ByteArray): FleetError {
    val answer = try {
        StrictJson.parse(content) as? Map<*, *>
    } catch (_: StrictJsonError) {
        null
    }
    val code = answer?.get("code") as? Long ?: 0L
    val text = if (answer == null) {
        String(content, Charsets.UTF_8).take(200)
    } else {
        listOf("detail", "extra").filter(answer::containsKey).joinToString(" ") { "${answer[it]}" }.take(300)
    }
    return when (code) {
        ACTIVATION_FAILED -> NodeStillActiveError(
            "the server does not activate this node key: either the key is not registered ($REGISTER), or the " +
                "server still counts it as online (until twice the heartbeat interval after the last heartbeat)",
        )
        RUN_STATUS_NOT_ALLOWED -> RunEndedError("the run is not running: $path answers $text")
        else -> {
            val remedy = if (code == REGISTRATION_DISABLED) "; the server wants registered nodes: $REGISTER" else ""
            ServerRefusedError("$path is refused with status $status, code $code: $text$remedy", status, code)
        }
    }
}
