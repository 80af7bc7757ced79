"""The account of what training spends in a day, and what one training may spend of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from rootlet.energy import EnergySpent
from rootlet.state import StateDirectory
from rootlet_runtime.energy import Energy

WRITE_EVERY_S = 5.0
"""A process that is killed forgets at most what it spent in this time, in seconds."""


class EnergyAccount:
    """What training has spent in the present local day, kept over restarts.

    Args:
        state: Where it is kept.
        now: The local wall clock.
    """

    def __init__(
        self, state: StateDirectory, *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._state = state
        self._now = now
        self._lock = threading.Lock()
        self._day: date | None = None
        self._spent = EnergySpent()
        self._written_at = float("-inf")

    def today(self) -> EnergySpent:
        """Spent so far in the present day."""
        with self._lock:
            return self._today()

    def spend(self, joules: float, method: str) -> None:
        """Adds to the present day; on disk after five seconds at the latest."""
        with self._lock:
            spent = self._today()
            both = "measured" if spent.method == method == "measured" else "estimated"
            self._spent = replace(spent, joules=spent.joules + joules, method=both)
            if time.monotonic() - self._written_at >= WRITE_EVERY_S:
                self._write()

    def flush(self) -> None:
        """Writes what has been spent."""
        with self._lock:
            if self._day is not None:
                self._write()

    def _today(self) -> EnergySpent:
        day = self._now().date()
        if self._day != day:  # the state directory is ours alone: it is read once a day
            joules, method = self._state.energy_on(day)
            self._day, self._spent = day, EnergySpent(joules=joules, method=method)
        return self._spent

    def _write(self) -> None:
        if self._day is not None:
            self._state.keep_energy(self._day, self._spent.joules, self._spent.method)
            self._written_at = time.monotonic()


@dataclass(kw_only=True)
class Allowance:
    """What one training may spend, and the account that it is charged to.

    Attributes:
        limit_j: Most joules; None for no limit.
        account: Charged as training goes on; None charges nobody.
    """

    limit_j: float | None = None
    account: EnergyAccount | None = None
    _charged_j: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """A training begins: it has spent nothing."""
        self._charged_j = 0.0

    def add(self, energy: Energy) -> None:
        """Charges what was spent beside the training."""
        if self.account is not None and energy.joules > 0:
            self.account.spend(energy.joules, energy.method)
            self.account.flush()

    def charge(self, energy: Energy, *, final: bool = False) -> None:
        """Charges what was spent since the last call; ``energy`` is the training's so far."""
        if self.account is None:
            return
        more = energy.joules - self._charged_j
        if more > 0:  # less where a meter failed on the way, and an estimate took its place
            self.account.spend(more, energy.method)
            self._charged_j = energy.joules
        if final:
            self.account.flush()
