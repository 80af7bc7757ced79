"""When clients are there: always, by the hour of the day, or as somebody recorded.

Times are seconds of virtual time; 0 is midnight, universal time.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import draws

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    Clients = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]

HOUR_S, DAY_S = 3600.0, 86400.0
_ZONE, _SLOT = 1, 2


class Availability(Protocol):
    """Who can be asked at a time."""

    def available(self, clients: Clients, time_s: float) -> Mask:
        """Whether each of these clients is there."""


@dataclass(frozen=True)
class Always:
    """Every client, at all times."""

    def available(self, clients: Clients, time_s: float) -> Mask:
        """All of them."""
        del time_s
        return np.ones(len(clients), bool)


@dataclass(frozen=True, kw_only=True)
class Diurnal:
    """By the hour: most clients at night, when a device charges, fewest twelve hours later.

    In every slot a client is there with probability
    ``low + (high - low) (1 + cos(2 pi (local hour - peak_hour) / 24)) / 2``.

    Attributes:
        low, high: the probabilities.
        peak_hour: local time of the most.
        zones: hours over which the clients' local times are spread; 0 for one time zone.
        slot_s: time after which a client's fate is drawn anew.
        seed: of the draws.

    Raises:
        SimulationConfigError: a value outside its bounds.
    """

    low: float = 0.05
    high: float = 0.6
    peak_hour: float = 2.0
    zones: float = 24.0
    slot_s: float = 1800.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1 or self.high == 0:
            raise SimulationConfigError(
                f"low {self.low}, high {self.high}: must be 0 <= low <= high <= 1, and high above 0"
            )
        if not self.slot_s > 0 or not 0 <= self.zones <= 24:
            raise SimulationConfigError(
                f"slot_s {self.slot_s} must be positive, zones {self.zones} lie in 0..24"
            )

    def available(self, clients: Clients, time_s: float) -> Mask:
        """By each one's probability now."""
        local = time_s / HOUR_S + self.zones * draws.uniform(clients, self.seed, _ZONE)
        wave = (1 + np.cos(2 * np.pi * (local - self.peak_hour) / 24)) / 2
        chance = self.low + (self.high - self.low) * wave
        slot = int(time_s // self.slot_s)
        mask: Mask = draws.uniform(clients, self.seed, _SLOT, slot) < chance
        return mask


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """As a trace says: each client follows one recorded device, over and over.

    Attributes:
        starts, ends: seconds, sorted within each device, [intervals].
        first: where each device's intervals begin; one more at the end.
        period_s: after which the trace begins anew.
    """

    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    period_s: float

    def available(self, clients: Clients, time_s: float) -> Mask:
        """Client n follows device ``n mod devices``."""
        now = time_s % self.period_s
        open_now = (self.starts <= now) & (now < self.ends)
        by_device = np.logical_or.reduceat(
            np.append(open_now, False), np.minimum(self.first[:-1], len(open_now))
        )
        by_device &= np.diff(self.first) > 0
        mask: Mask = by_device[np.asarray(clients) % len(by_device)]
        return mask

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str], *, period_s: float = DAY_S) -> Recorded:
        """A trace with the columns ``device``, ``start_s`` and ``end_s``.

        Raises:
            SimulationConfigError: a column is missing, or a line is not an interval.
        """
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            missing = {"device", "start_s", "end_s"} - set(reader.fieldnames or ())
            if missing:
                raise SimulationConfigError(
                    f"{path}: no column {', '.join(sorted(missing))}; a trace has device, "
                    "start_s, end_s"
                )
            intervals: dict[str, list[tuple[float, float]]] = {}
            for line, row in enumerate(reader, 2):
                try:
                    start, end = float(row["start_s"]), float(row["end_s"])
                except (TypeError, ValueError):
                    start, end = 0.0, -1.0
                if not 0 <= start < end <= period_s:
                    raise SimulationConfigError(
                        f"{path}, line {line}: {row['start_s']}..{row['end_s']}; an interval has "
                        f"0 <= start_s < end_s <= {period_s:g}"
                    )
                intervals.setdefault(row["device"], []).append((start, end))
        if not intervals:
            raise SimulationConfigError(f"{path}: holds no interval; at least one is needed")
        devices = [sorted(each) for each in intervals.values()]
        flat = np.array([pair for each in devices for pair in each])
        first = np.concatenate([[0], np.cumsum([len(each) for each in devices])])
        return cls(
            starts=flat[:, 0], ends=flat[:, 1], first=first.astype(np.int64), period_s=period_s
        )
