"""What happens in a federation, as it happens: one JSON object a line, only ever appended.

The ServerApp writes; `rootlet serve`, the demo and any other program read along. An event is a
frozen value; unknown kinds and fields are ignored by readers, so that older readers outlive new
events.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """Anything that happened.

    Attributes:
        at_s: When, in seconds since 1970 (UTC).
    """

    kind: ClassVar[str] = "event"
    at_s: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Listening(Event):
    """Devices can join.

    Attributes:
        address: `host:port` that they dial.
        root_certificate: The authority that they must trust, or None for plain HTTP.
        node_auth: Whether only registered device keys may join.
    """

    kind: ClassVar[str] = "listening"
    address: str
    root_certificate: str | None
    node_auth: bool


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """The server's processes were started anew, and go on after the last finished round.

    Attributes:
        reason: Which of them died.
    """

    kind: ClassVar[str] = "restarted"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """The server waits for devices.

    Attributes:
        online: Devices that are there.
        needed: Devices that a round needs.
    """

    kind: ClassVar[str] = "waiting"
    online: int
    needed: int


@dataclass(frozen=True, kw_only=True)
class RoundStarted(Event):
    """A cohort was asked to train.

    Attributes:
        round: The round, from 1.
        cohort: The nodes that were asked.
    """

    kind: ClassVar[str] = "round_started"
    round: int
    cohort: list[int]


@dataclass(frozen=True, kw_only=True)
class Reply(Event):
    """A device's answer was accepted.

    Attributes:
        round: The round it belongs to.
        node: The node that answered.
        phase: `train` or `evaluate`.
        seconds: From the request to the answer.
        metrics: The device's own figures, by the names of `docs/architecture.md`.
        staleness: Rounds finished since the device was asked; 0 where all wait for each other.
    """

    kind: ClassVar[str] = "reply"
    round: int
    node: int
    phase: str
    seconds: float
    metrics: Mapping[str, float]
    staleness: int = 0


@dataclass(frozen=True, kw_only=True)
class ReplyRefused(Event):
    """A device's answer was left out, or the device answered with an error.

    Attributes:
        round: The round it belongs to.
        node: The node that answered.
        phase: `train` or `evaluate`.
        reason: What was wrong.
    """

    kind: ClassVar[str] = "reply_refused"
    round: int
    node: int
    phase: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundRepeated(Event):
    """A round made no adapter and is done again.

    Attributes:
        round: The round, from 1.
        reason: Too few answers, or an adapter that cannot be used.
    """

    kind: ClassVar[str] = "round_repeated"
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundFinished(Event):
    """A round's adapter was aggregated and saved.

    Means are weighted by the devices' numbers of examples, sums run over the accepted replies.

    Attributes:
        round: The round, from 1.
        devices: How many devices' updates were aggregated.
        asked: How many devices were asked.
        seconds: From the first request to the saved checkpoint.
        means: Mean of each metric: `loss`, `accuracy_received`, `accuracy_trained`, …
        bytes_down: Bytes that the devices received.
        bytes_up: Bytes that the devices sent.
        train_s: The longest training time of a device, in seconds.
        energy_estimated_j: Sum of the devices' estimates, in joules.
        central: Metrics on the server's own evaluation data, if it has any.
        protection: How the updates were protected; then there are no means, and neither training
            times nor energies.
        epsilon: What all rounds have spent, where they are private.
    """

    kind: ClassVar[str] = "round_finished"
    round: int
    devices: int
    asked: int
    seconds: float
    means: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    train_s: float
    energy_estimated_j: float
    central: Mapping[str, float] | None = None
    protection: str = ""
    epsilon: float | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetSpent(Event):
    """The privacy budget holds no further round; what was learnt so far is the result.

    Attributes:
        round: The last round.
        reason: What one more would have spent, and the budget.
    """

    kind: ClassVar[str] = "budget_spent"
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The devices evaluated the final adapter on their held-out examples.

    Attributes:
        round: The last round.
        devices: How many devices' figures are in the means.
        means: Mean of each metric, weighted by the numbers of examples.
        central: Metrics on the server's own evaluation data, if it has any.
    """

    kind: ClassVar[str] = "evaluated"
    round: int
    devices: int
    means: Mapping[str, float]
    central: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The ServerApp ended.

    Attributes:
        rounds: The last finished round.
        error: Why it ended early, or None.
    """

    kind: ClassVar[str] = "run_finished"
    rounds: int
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published(Event):
    """The improved bundle was written.

    Attributes:
        path: Where.
        version: Its version.
    """

    kind: ClassVar[str] = "published"
    path: str
    version: int


KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (
        Listening, Restarted, Waiting, RoundStarted, Reply, ReplyRefused, RoundRepeated,
        RoundFinished, BudgetSpent, Evaluated, RunFinished, Published,
    )
}  # fmt: skip


class EventLog:
    """Appends events to a file; each line is written by one call, so a reader sees whole lines."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        if self._file.tell() and not self._ends_a_line():
            self._file.write(b"\n")  # what a crash left of a line stays one of its own

    def write(self, event: Event) -> None:
        """Append one event."""
        self._file.write(to_line(event).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _ends_a_line(self) -> bool:
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"


def to_line(event: Event) -> str:
    """An event as one line of JSON."""
    return json.dumps({"kind": event.kind, **asdict(event)}, allow_nan=False)


class EventReader:
    """Reads the events that were appended since the last look.

    Args:
        path: The event file; it need not exist yet.
        from_end: Whether to leave out what is in the file already.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if from_end and path.exists() else 0

    def read(self) -> Iterator[Event]:
        """The new events; a line that is still being written is left for the next look."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                event = parse_event(line)
                if event is not None:
                    yield event


def parse_event(line: bytes | str) -> Event | None:
    """The event in one line; None if this version does not know its kind, or a crash tore it."""
    try:
        values: dict[str, Any] = json.loads(line)
        kind = KINDS.get(values.pop("kind", ""))
        if kind is None:
            return None
        known = {item.name for item in fields(kind)}
        return kind(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return None


OnEvent = Callable[[Event], None]
