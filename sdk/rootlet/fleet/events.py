"""What a fleet session reports to its app."""

import enum
from dataclasses import dataclass


class EventKind(enum.StrEnum):
    """Kinds of events, in the order in which a session meets them."""

    ACTIVATED = "activated"
    """The node is online."""
    RESUMED = "resumed"
    """The node is online again under the id it had before."""
    WAITING_TO_ACTIVATE = "waiting to activate"
    """The server does not activate the node yet; `detail` gives the reason and the bound."""
    CLOCK_CORRECTED = "clock corrected"
    """This device's clock is wrong; `detail` gives by how much."""
    CONNECTION_LOST = "connection lost"
    """The server does not answer; the session keeps trying."""
    CONNECTION_RESTORED = "connection restored"
    """The server answers again."""
    RECOVERED = "recovered"
    """A message from before a restart is taken up again."""
    PULLED = "pulled"
    """A request arrived."""
    ANSWERED = "answered"
    """The request was answered; `detail` gives the error where it was answered with one."""
    PUSHED = "pushed"
    """The server holds the reply."""
    TAKEN = "taken"
    """The server has read the last replies."""
    DROPPED = "dropped"
    """A message was given up; `detail` gives the reason."""
    DEACTIVATED = "deactivated"
    """The node is offline."""


@dataclass(frozen=True)
class FleetEvent:
    """Something that happened in a session.

    Attributes:
        kind: What.
        detail: More about it, in plain words; may be empty.
        run_id: The run that it concerns; 0 for none.
        message_type: `train` or `evaluate`, where it concerns a message.
    """

    kind: EventKind
    detail: str = ""
    run_id: int = 0
    message_type: str = ""
