"""What a fit spends, and whether another step fits into its limit."""

import time
from collections.abc import Mapping
from dataclasses import replace

from rootlet_runtime.energy import Energy, Work, count_work, estimated_energy
from rootlet_runtime.instructions import InstructionCounter
from rootlet_runtime.meter import Meter

READ_EVERY_S = 0.2


class Spending:
    """Energy since the start of a call; measured while the meter tells, else estimated.

    Args:
        meter: entered by the caller.
        cost: the manifest's.
        limit_j: most joules of the whole fit; None for no limit.
        counter: counts instructions; entered by the caller.
    """

    def __init__(
        self,
        meter: Meter,
        cost: Mapping[str, int],
        *,
        limit_j: float | None = None,
        counter: InstructionCounter | None = None,
    ) -> None:
        self._counter = counter or InstructionCounter()
        self._meter = meter
        self._cost = cost
        self._limit_j = limit_j
        self._work = Work()
        self._steps = 0
        self._read_at = float("-inf")
        self._measured_j: float | None = None
        self._earlier_j = 0.0
        self._ready_j = 0.0

    def begin(self) -> None:
        """The first step comes next: what was spent so far made ready for it, and is no step's."""
        self._ready_j = self.energy(final=True).joules

    def resume(self, joules: float, steps: int) -> None:
        """Takes up a fit that has spent this much in so many steps."""
        self._earlier_j, self._steps = joules, steps

    def trained(self, examples: int, batches: int = 1) -> None:
        """Counts a step; a private one may take several batches, or none."""
        self._steps += 1
        self._work += count_work(self._cost, train_examples=examples, train_batches=batches)

    def evaluated(self, examples: int, batches: int) -> None:
        """Counts examples that were only predicted, measured or encoded.

        An encoded example counts as a predicted one, of which it is the first part.
        """
        self._work += count_work(self._cost, predict_examples=examples, predict_batches=batches)

    def energy(self, *, final: bool = False) -> Energy:
        """Of this call. The meter is read again after 0.2 s at the soonest, or if it is ``final``.

        A meter that fails on the way takes what it had measured with it: all is then estimated.
        """
        now = time.monotonic()
        if final or now - self._read_at >= READ_EVERY_S:
            self._measured_j, self._read_at = self._meter.read(), now
        if self._measured_j is None or self._meter.source is None:
            return estimated_energy(self.work)
        return Energy(
            joules=self._measured_j,
            method="measured",
            source=self._meter.source,
            work=self.work,
        )

    @property
    def work(self) -> Work:
        """What was counted so far."""
        return replace(self._work, instructions_measured=self._counter.read())

    @property
    def total_j(self) -> float:
        """Joules of the fit, earlier calls included."""
        return self._earlier_j + self.energy().joules

    def room(self) -> bool:
        """Whether another step like the ones so far stays within the limit."""
        if self._limit_j is None:
            return True
        total_j = self.total_j
        return total_j + (total_j - self._ready_j) / max(self._steps, 1) <= self._limit_j
