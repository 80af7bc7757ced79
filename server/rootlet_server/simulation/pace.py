"""How a round ends: who answers in time, who is too late, and how long it took.

Synchronous: a round asks a cohort, perhaps more than it needs (over-selection, Bonawitz et al.
2019), and ends with the last answer that it waits for, or at its deadline. Buffered (FedBuff,
Nguyen et al. 2022): clients train all the time, and every ``buffer_size`` answers make a version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rootlet_server.errors import SimulationConfigError, SimulationError
from rootlet_server.simulation.availability import Always, Availability

if TYPE_CHECKING:
    import numpy.typing as npt

    from rootlet_server.simulation.latency import Latency

    Clients = npt.NDArray[np.int64]

OK, EMPTY, DIVERGED, LOST, LATE, UNUSED = "ok", "empty", "diverged", "lost", "late", "unused"
STATUSES = (OK, EMPTY, DIVERGED, LOST, LATE, UNUSED)
WAIT_STEP_S, LONGEST_WAIT_S = 600.0, 7 * 86400.0
ALL_AT_ONCE = 100_000


@dataclass(frozen=True, kw_only=True)
class Pace:
    """When a round ends.

    Attributes:
        over_selection: clients asked for each answer that is waited for; 1 waits for all.
        deadline_s: virtual seconds after which a round ends with the answers that are there.
        buffer_size: answers that make a new version, in buffered rounds; None for synchronous
            ones. ``cohort_size`` is then how many clients train at a time.

    Raises:
        SimulationConfigError: a value outside its bounds, or two that exclude each other.
    """

    over_selection: float = 1.0
    deadline_s: float | None = None
    buffer_size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.over_selection <= 10:
            raise SimulationConfigError(
                f"over_selection {self.over_selection}: must lie in 1..10; 1.3 is usual"
            )
        if self.deadline_s is not None and not (
            math.isfinite(self.deadline_s) and self.deadline_s > 0
        ):
            raise SimulationConfigError(f"deadline_s {self.deadline_s}: must be positive")
        if self.buffer_size is None:
            return
        if self.buffer_size < 1:
            raise SimulationConfigError(f"buffer_size {self.buffer_size}: must be at least 1")
        if self.over_selection != 1 or self.deadline_s is not None:
            raise SimulationConfigError(
                "buffer_size: a buffered round has neither over_selection nor deadline_s; leave "
                "them out"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of the clients that were asked.

    Attributes:
        status: of each, one of ``STATUSES``.
        seconds: that each takes, or would have taken.
        round_s: that the round takes.
    """

    status: npt.NDArray[np.object_]
    seconds: npt.NDArray[np.float64]
    round_s: float

    @property
    def answering(self) -> npt.NDArray[np.bool_]:
        """Whose answers count."""
        mask: npt.NDArray[np.bool_] = self.status == OK
        return mask


def everybody(count: int) -> Outcome:
    """Everybody answers at once: a world without time."""
    return Outcome(status=np.full(count, OK, object), seconds=np.zeros(count), round_s=0.0)


def outcome(pace: Pace, seconds: npt.NDArray[np.float64], lost: npt.NDArray[np.bool_]) -> Outcome:
    """Who answers in time.

    Args:
        pace: of the round.
        seconds: that each client takes.
        lost: who never answers.
    """
    count = len(seconds)
    wanted = math.ceil(count / pace.over_selection - 1e-9)
    deadline = math.inf if pace.deadline_s is None else pace.deadline_s
    status = np.full(count, OK, object)
    status[seconds > deadline] = LATE
    status[lost] = LOST
    order = np.argsort(seconds, kind="stable")
    in_time = order[status[order] == OK]
    status[in_time[wanted:]] = UNUSED
    if len(in_time) >= wanted > 0:
        round_s = float(seconds[in_time[wanted - 1]])
    else:
        round_s = min(deadline, float(seconds.max(initial=0.0)))
    return Outcome(status=status, seconds=seconds, round_s=round_s)


def timed(  # noqa: PLR0917 (one caller)
    latency: Latency | None,
    pace: Pace,
    clients: Clients,
    examples: npt.NDArray[np.int64],
    bytes_each: tuple[int, int],
    round_: int,
) -> Outcome:
    """The outcome of a synchronous round.

    Args:
        latency: the fleet; None for no time.
        pace: of the round.
        clients: who was asked.
        examples: that each trains on, epochs included.
        bytes_each: down and up.
        round_: counted from 1.
    """
    if latency is None:
        return everybody(len(clients))
    seconds = latency.seconds(clients, examples.astype(float), *bytes_each, round_)
    return outcome(pace, seconds, latency.fails(clients, round_))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Who is asked, and after how much waiting."""

    clients: Clients
    waited_s: float


def select(
    rng: np.random.Generator,
    population: int,
    count: int,
    availability: Availability | None,
    now_s: float,
) -> Selection:
    """A uniform sample of the clients that are there; waits until there are enough.

    Raises:
        SimulationError: a week of virtual time did not bring enough.
    """
    who = availability or Always()
    waited = 0.0
    while waited <= LONGEST_WAIT_S:
        found = _draw(rng, population, count, who, now_s + waited)
        if len(found) == count:
            return Selection(clients=np.sort(found), waited_s=waited)
        waited += WAIT_STEP_S
    raise SimulationError(
        f"{count} clients are wanted, and never so many were there in seven virtual days; lower "
        "cohort_size, or change the availability"
    )


def _draw(
    rng: np.random.Generator, population: int, count: int, who: Availability, now_s: float
) -> Clients:
    if population <= ALL_AT_ONCE:
        order = rng.permutation(population)
        return order[who.available(order, now_s)][:count]
    found: dict[int, None] = {}
    seen: set[int] = set()
    while len(found) < count and len(seen) < population // 2:
        drawn = rng.integers(0, population, 2 * count)
        there = who.available(drawn, now_s)
        for client, is_there in zip(drawn.tolist(), there.tolist(), strict=True):
            if client not in seen:
                seen.add(client)
                if is_there:
                    found[client] = None
    return np.array(list(found)[:count], np.int64)
