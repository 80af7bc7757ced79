package org.rootlet.fleet

/** Kinds of events, in the order in which a session meets them. */
enum class EventKind {
    /** The node is online. */
    ACTIVATED,

    /** The node is online again under the id it had before. */
    RESUMED,

    /** The server does not activate the node yet; the detail gives the reason and the bound. */
    WAITING_TO_ACTIVATE,

    /** This device's clock is wrong; the detail gives by how much. */
    CLOCK_CORRECTED,

    /** The server does not answer; the session keeps trying. */
    CONNECTION_LOST,

    /** The server answers again. */
    CONNECTION_RESTORED,

    /** A message from before a restart is taken up again. */
    RECOVERED,

    /** A request arrived. */
    PULLED,

    /** The request was answered; the detail gives the error where it was answered with one. */
    ANSWERED,

    /** The server holds the reply. */
    PUSHED,

    /** The server has read the last replies. */
    TAKEN,

    /** A message was given up; the detail gives the reason. */
    DROPPED,

    /** The node is offline. */
    DEACTIVATED,
}

/**
 * Something that happened in a session.
 *
 * @property detail more about it, in plain words; may be empty.
 * @property runId the run that it concerns; 0 for none.
 * @property messageType `train` or `evaluate`, where it concerns a message.
 */
data class FleetEvent(
    val kind: EventKind,
    val detail: String = "",
    val runId: Long = 0,
    val messageType: String = "",
)
