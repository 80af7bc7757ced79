"""Meters that a Linux device may have: RAPL of the processor, or the battery's own gauge.

RAPL (``class/powercap/intel-rapl:<n>``, on AMD too) counts the microjoules of a processor package
and of its memory, whatever runs there; the counter wraps around at ``max_energy_range_uj``, so it
must be read at least once in a turn (about an hour at 60 W). Since 2020 only root may read it.

A battery (``class/power_supply``) counts for the whole device, and only while it is discharging and
nothing charges. Its power is integrated over time by the trapezoidal rule; where it tells only its
content, the difference is taken, whose grain is coarse (10 mWh are 36 J).

No meter, a refused file, or a charger plugged in on the way: there is no measurement, and the
caller estimates (``rootlet_runtime.energy``) and says so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

MICRO = 1e-6
J_PER_WH = 3600.0
_PACKAGE, _MEMORY = "package", "dram"


class _Source(Protocol):
    name: str

    def read(self) -> float:
        """Joules since the source was opened.

        Raises:
            OSError: the file is gone or refused.
            ValueError: it holds no number, or the source no longer measures.
        """


@dataclass
class _Zone:
    """One RAPL counter, in microjoules."""

    path: Path
    turn_uj: int
    last_uj: int
    spent_uj: int = 0

    def read(self) -> int:
        now = _integer(self.path)
        change = now - self.last_uj
        self.spent_uj += change if change >= 0 else change + self.turn_uj
        self.last_uj = now
        return self.spent_uj


class _Rapl:
    name = "rapl"

    def __init__(self, sysfs_root: Path) -> None:
        self._zones = [
            _Zone(
                path=folder / "energy_uj",
                turn_uj=_integer(folder / "max_energy_range_uj"),
                last_uj=_integer(folder / "energy_uj"),
            )
            for folder in sorted((sysfs_root / "class" / "powercap").glob("intel-rapl:*"))
            if _text(folder / "name").partition("-")[0] in {_PACKAGE, _MEMORY}
        ]
        if not self._zones:
            raise ValueError("no RAPL zone")

    def read(self) -> float:
        return sum(zone.read() for zone in self._zones) * MICRO


class _Battery:
    name = "battery"

    def __init__(self, sysfs_root: Path, clock: Callable[[], float]) -> None:
        self._root = sysfs_root / "class" / "power_supply"
        self._clock = clock
        self._spent_j = 0.0
        self._last = self._power_w()
        self._start_j = None if self._last is not None else self._content_j()
        self._at = clock()

    def read(self) -> float:
        power = self._power_w()
        if self._start_j is not None:
            return self._start_j - self._content_j()
        if power is None or self._last is None:
            raise ValueError("the battery stopped telling its power")
        now = self._clock()
        self._spent_j += (now - self._at) * (power + self._last) / 2
        self._at, self._last = now, power
        return self._spent_j

    def _power_w(self) -> float | None:
        """Watts of all discharging batteries; None where one does not tell."""
        powers = [_power_w(folder) for folder in self._discharging()]
        known = [power for power in powers if power is not None]
        return sum(known) if len(known) == len(powers) else None

    def _content_j(self) -> float:
        return sum(_content_j(folder) for folder in self._discharging())

    def _discharging(self) -> list[Path]:
        """The batteries that run the device.

        Raises:
            ValueError: none does, or one is being charged.
        """
        states = {
            folder: _text(folder / "status")
            for folder in sorted(self._root.glob("*"))
            if _optional(folder / "type") == "Battery" and _optional(folder / "scope") != "Device"
        }
        found = [folder for folder, status in states.items() if status == "Discharging"]
        if not found or "Charging" in states.values():
            raise ValueError("no battery is discharging")
        return found


@dataclass
class Meter:
    """Measures from ``with`` on: RAPL if it can be read, else a discharging battery, else nothing.

    Args:
        sysfs_root: where sysfs is mounted.
        clock: seconds, for a battery that tells its power.
    """

    sysfs_root: Path = Path("/sys")
    clock: Callable[[], float] = time.monotonic
    _source: _Source | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._source = self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._source = None

    @property
    def source(self) -> str | None:
        """``rapl`` or ``battery``; None where nothing measures."""
        return None if self._source is None else self._source.name

    def read(self) -> float | None:
        """Joules since ``with``; None, from then on, where nothing measures (any more)."""
        if self._source is not None:
            try:
                return self._source.read()
            except (OSError, ValueError):
                self._source = None
        return None

    def _open(self) -> _Source | None:
        try:
            return _Rapl(self.sysfs_root)
        except (OSError, ValueError):
            pass
        try:
            return _Battery(self.sysfs_root, self.clock)
        except (OSError, ValueError):
            return None


def _power_w(folder: Path) -> float | None:
    power = _optional(folder / "power_now")
    if power:
        return abs(int(power)) * MICRO  # some drivers tell a discharge as negative
    current, voltage = _optional(folder / "current_now"), _optional(folder / "voltage_now")
    if current and voltage:
        return abs(int(current)) * MICRO * int(voltage) * MICRO
    return None


def _content_j(folder: Path) -> float:
    energy = _optional(folder / "energy_now")
    if energy:
        return int(energy) * MICRO * J_PER_WH
    charge_ah = _integer(folder / "charge_now") * MICRO
    return charge_ah * _integer(folder / "voltage_now") * MICRO * J_PER_WH


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _integer(path: Path) -> int:
    return int(_text(path))


def _optional(path: Path) -> str:
    """The text of a file that a driver may not have, or may not answer for; empty then."""
    try:
        return _text(path)
    except OSError:
        return ""
