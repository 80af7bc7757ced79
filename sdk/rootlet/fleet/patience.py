"""How a session waits: for work, and for a server that does not answer."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from rootlet.errors import ConnectionFailedError
from rootlet.fleet.events import EventKind

RECONNECT_MAX_S = 30.0


@dataclass(frozen=True, kw_only=True)
class PollPolicy:
    """How often to ask for work: `wait = clamp(fraction * idle time, min_s, max_s)`.

    The wait costs a federation at most `fraction` of the time it let the device wait, and an idle
    device asks every `max_s` only.

    Attributes:
        fraction: Share of the time since the last message (or since going online).
        min_s: Shortest wait, in seconds.
        max_s: Longest wait, in seconds.
    """

    fraction: float = 0.05
    min_s: float = 0.2
    max_s: float = 5.0

    def __post_init__(self) -> None:
        if not (0 < self.fraction <= 1 and 0 < self.min_s <= self.max_s):
            raise ValueError(f"{self}: 0 < fraction <= 1 and 0 < min_s <= max_s are needed")

    def wait_s(self, idle_s: float) -> float:
        """Return the wait before the next question, in seconds."""
        return min(self.max_s, max(self.min_s, self.fraction * idle_s))


DEFAULT_POLLING = PollPolicy()


class Outage:
    """A connection that fails: reported once, waited out ever longer."""

    def __init__(self, emit: Callable[[EventKind, str], object]) -> None:
        self._emit = emit
        self._wait_s = 0.0

    def wait(self, stop: Event, error: ConnectionFailedError) -> None:
        """Wait before the next attempt."""
        if not self._wait_s:
            self._emit(EventKind.CONNECTION_LOST, str(error))
        self._wait_s = min(RECONNECT_MAX_S, 2 * self._wait_s or 1.0)
        stop.wait(self._wait_s)

    def over(self) -> None:
        """Note that the server answers."""
        if self._wait_s:
            self._wait_s = 0.0
            self._emit(EventKind.CONNECTION_RESTORED, "")
