"""What an app can see of its device: a snapshot when it asks, and events as they happen."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from rootlet.energy import EnergySpent
from rootlet.policy import Decision
from rootlet_runtime.fit import FitResult
from rootlet_runtime.quality_gate import Verdict

NOTHING_SPENT = EnergySpent()


class DeviceState(enum.StrEnum):
    """What a device is doing."""

    IDLE = "idle"
    """It has not joined a server."""
    WAITING = "waiting"
    """The policy, or a lack of examples, keeps it from taking part."""
    CONNECTING = "connecting"
    """It looks for the server."""
    ONLINE = "online"
    """It asks the server for work."""
    WORKING = "working"
    """It answers a request."""
    LEAVING = "leaving"
    """It waits until its last reply has been read."""
    FAILED = "failed"
    """It gave up; `DeviceStatus.last_error` says why. `join` tries again."""
    CLOSED = "closed"
    """The client is closed."""


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """A snapshot.

    Attributes:
        state: What the device is doing.
        examples: Examples that the client's own store holds.
        rounds: Rounds trained since the device joined.
        rounds_today: Rounds trained in the present local day.
        decision: What the policy said last about taking part; None before it was asked.
        last_error: The last thing that went wrong; empty where nothing did.
        energy_today: What training has spent in the present local day, measured or estimated.
        refused: Why the last finished update was not used; empty where it is.
        remembered: Examples in the replay buffer.
        drifted: Whether the drift alarm has told since the present adapter is in use.
        bytes_up: Bytes of bodies sent to the server since the device joined.
        bytes_down: Bytes of bodies received.
    """

    state: DeviceState
    examples: int
    rounds: int
    rounds_today: int
    decision: Decision | None
    last_error: str
    refused: str = ""
    remembered: int = 0
    drifted: bool = False
    bytes_up: int
    bytes_down: int
    energy_today: EnergySpent = NOTHING_SPENT


@dataclass(frozen=True, kw_only=True)
class DeviceEvent:
    """Something that happened, told from a background thread.

    Attributes:
        kind: `waiting` (the policy says no), `trained`, `evaluated`, `rolled back` (training
            diverged on the way), `kept` (an update was worse on the device's own held-out examples,
            and the app's adapter stays), `drift` (the model is less sure than it was),
            `interrupted`, `failed` (it goes on), `gave up`, `left`, or a kind of
            `rootlet.fleet.events.EventKind`.
        detail: More about it, in plain words; may be empty.
        message_type: `train` or `evaluate`, where it concerns a request.
        round: The server's round; 0 for none.
        metrics: The numbers of the reply, by the names of `docs/architecture.md`, contract 3.
    """

    kind: str
    detail: str = ""
    message_type: str = ""
    round: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def kept(verdict: Verdict) -> DeviceEvent:
    """What an app is told of an update that the gate refused."""
    return DeviceEvent(kind="kept", detail=f"the adapter from before: {verdict.reason}")


def rolled_back(fit: FitResult) -> DeviceEvent:
    """What an app is told of a training that diverged on the way."""
    times = "once" if fit.rolled_back == 1 else f"{fit.rolled_back} times"
    what = "ended with" if fit.ended_by == "guard" else "went back to"
    return DeviceEvent(
        kind="rolled back",
        detail=f"{times}, as {fit.reason}; training {what} the last good adapter",
    )
