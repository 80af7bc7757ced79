"""Where a federation stands, from its event log: for `rootlet status` and the metrics endpoint."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rootlet_server.federation import events

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(kw_only=True)
class FederationStatus:
    """What the events so far come to; `hear` takes one more.

    Attributes:
        state: `starting`, `waiting` for devices, `training`, `between rounds`, `finished` or
            `failed`.
        address: `host:port` that devices dial; empty before the server listens.
        online, needed: Devices at the last look, and how many a round needs.
        round: The last finished round; 0 before the first.
        asked, answered: Devices that the last finished round asked, and whose updates it has.
        refused: Answers left out so far.
        last_refusal: Why the last of them was.
        round_s: Duration of the last finished round, in seconds.
        bytes_down, bytes_up: Sums over the finished rounds, as devices count them.
        energy_estimated_j: Sum of the devices' estimates, in joules.
        means: Metrics of the last finished round, weighted by examples.
        central: The same on the server's own data; empty where it has none.
        protection: How the last finished round's updates were protected; empty for not at all.
        epsilon: What all rounds have spent, where they are private.
        restarts: How often the server's processes were started anew.
        note: Why the last round was repeated, or the budget ended the run; empty otherwise.
        error: Why the run ended early; empty otherwise.
        published: The improved bundle, once it is written.
        version: Its version; 0 before.
        last_event_s: Time of the last event, in seconds since 1970 (UTC); 0 before any.
    """

    state: str = "starting"
    address: str = ""
    online: int = 0
    needed: int = 0
    round: int = 0
    asked: int = 0
    answered: int = 0
    refused: int = 0
    last_refusal: str = ""
    round_s: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    energy_estimated_j: float = 0.0
    means: Mapping[str, float] = field(default_factory=dict)
    central: Mapping[str, float] = field(default_factory=dict)
    protection: str = ""
    epsilon: float | None = None
    restarts: int = 0
    note: str = ""
    error: str = ""
    published: str = ""
    version: int = 0
    last_event_s: float = 0.0

    def hear(self, event: events.Event) -> None:
        """Take an event into account."""
        self.last_event_s = event.at_s
        match event:
            case events.Listening():
                self.address, self.state, self.error = event.address, "waiting", ""
            case events.Waiting():
                self.state, self.online, self.needed = "waiting", event.online, event.needed
            case events.RoundStarted():
                self.state, self.online = "training", max(self.online, len(event.cohort))
            case events.ReplyRefused():
                self.refused += 1
                self.last_refusal = f"round {event.round}, node {event.node}: {event.reason}"
            case events.Restarted():
                self.restarts += 1
            case events.RoundRepeated():
                self.state, self.note = "between rounds", f"round {event.round}: {event.reason}"
            case events.BudgetSpent():
                self.note = event.reason
            case events.RoundFinished():
                self._finish(event)
            case events.Evaluated():
                self.means = {**self.means, **event.means}
                self.central = event.central or self.central
            case events.RunFinished():
                self.error = event.error or ""
                self.state = "failed" if event.error else "finished"
            case events.Published():
                self.state, self.published, self.version = "finished", event.path, event.version

    def _finish(self, event: events.RoundFinished) -> None:
        self.state, self.round, self.round_s = "between rounds", event.round, event.seconds
        self.asked, self.answered = event.asked, event.devices
        self.bytes_down += event.bytes_down
        self.bytes_up += event.bytes_up
        self.energy_estimated_j += event.energy_estimated_j
        self.means, self.central = event.means, event.central or {}
        self.protection, self.epsilon, self.note = event.protection, event.epsilon, ""


def read_status(path: Path) -> FederationStatus:
    """The status after all events of a log; `starting` where there is none."""
    status = FederationStatus()
    for event in events.EventReader(path).read():
        status.hear(event)
    return status


def is_served(state_dir: Path) -> bool:
    """Whether a server holds the state directory at this moment."""
    try:
        with (state_dir / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
