"""The policy held against the device as it is now: may it take part, may it train?"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime

from rootlet.conditions import DeviceConditions
from rootlet.energy_account import EnergyAccount
from rootlet.policy import Decision, ParticipationPolicy, decide
from rootlet.state import StateDirectory

_log = logging.getLogger(__name__)


class Gate:
    """Reads the conditions every ``recheck_s`` seconds at most: asking between steps is cheap.

    A conditions reader that raises counts as a device that can tell nothing.

    Attributes:
        energy: The account of what training spends in a day.

    Args:
        policy: What must hold.
        conditions: Reads what holds.
        state: Where the day's rounds are counted.
        has_examples: Whether there is anything to learn from.
        recheck_s: Longest time in seconds that a reading is used.
        now: The local wall clock.
    """

    def __init__(
        self,
        policy: ParticipationPolicy,
        conditions: Callable[[], DeviceConditions],
        state: StateDirectory,
        *,
        has_examples: Callable[[], bool],
        recheck_s: float,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._policy = policy
        self._local_policy = replace(policy, unmetered=False, max_rounds_per_day=None)
        self._conditions = conditions
        self._state = state
        self.energy = EnergyAccount(state, now=now)
        self._has_examples = has_examples
        self._recheck_s = recheck_s
        self._now = now
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._last = DeviceConditions()
        self._day: date | None = None
        self._rounds = 0

    def decide(self) -> Decision:
        """Whether the device may take part in rounds now."""
        return self._decide(self._policy)

    def decide_local(self) -> Decision:
        """Whether it may train for itself now: neither the network nor the day's rounds matter."""
        return self._decide(self._local_policy)

    def rounds_today(self) -> int:
        """Rounds trained in the present local day."""
        today = self._now().date()
        with self._lock:
            if self._day != today:  # the state directory is ours alone: it is read once a day
                self._day, self._rounds = today, self._state.rounds_on(today)
            return self._rounds

    def count_round(self) -> None:
        """Counts one more round in the present local day."""
        today = self._now().date()
        with self._lock:
            self._day, self._rounds = today, self._state.count_round(today)

    def _decide(self, policy: ParticipationPolicy) -> Decision:
        decision = decide(
            policy,
            self._current(),
            now=self._now(),
            rounds_today=self.rounds_today(),
            energy_today=self.energy.today(),
        )
        if self._has_examples():
            return decision
        return Decision(allowed=False, reasons=(*decision.reasons, "there are no examples yet"))

    def _current(self) -> DeviceConditions:
        with self._lock:
            if time.monotonic() - self._read_at >= self._recheck_s:
                self._last = self._read()
                self._read_at = time.monotonic()
            return self._last

    def _read(self) -> DeviceConditions:
        try:
            return self._conditions()
        except Exception:
            _log.exception("the conditions reader failed; the device counts as unable to tell")
            return DeviceConditions()
