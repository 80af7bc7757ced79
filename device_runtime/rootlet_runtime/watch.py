"""A fit under its guard: what the guard is shown, the last good state, and the way back to it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from rootlet_runtime import batches
from rootlet_runtime.batches import AnyArray
from rootlet_runtime.engines import Engine
from rootlet_runtime.errors import DivergedError, NonFiniteLossError
from rootlet_runtime.guard import FIRST_EXAMPLES, Guard, GuardConfig, Observation
from rootlet_runtime.spending import Spending
from rootlet_runtime.state import TrainState

HeldOut = tuple[AnyArray, AnyArray]


@dataclass(kw_only=True)
class Interval:
    """Sums over the steps since the last check; losses and metrics weighted by examples."""

    steps: int = 0
    examples: int = 0
    loss: float = 0.0
    loss_squared: float = 0.0
    metric: float = 0.0
    rate: float = 0.0

    def add(self, loss: float, metric: float, examples: int, rate: float) -> None:
        """Counts a step."""
        self.steps += 1
        self.examples += examples
        self.loss += loss * examples
        self.loss_squared += loss * loss * examples
        self.metric += metric * examples
        self.rate += rate

    def observed(self, adapter: Mapping[str, AnyArray], good: TrainState) -> Observation:
        """What the guard is shown; ``good`` is the state after the last check."""
        loss = self.loss / self.examples
        return Observation(
            loss=loss,
            loss_deviation=math.sqrt(max(self.loss_squared / self.examples - loss * loss, 0.0)),
            metric=self.metric / self.examples,
            examples=self.examples,
            speeds={
                name: float(np.linalg.norm((value - good.adapter[name]).astype(np.float64)))
                / self.rate
                for name, value in adapter.items()
            },
        )


@dataclass(kw_only=True)
class Watch:
    """Watches one fit.

    Attributes:
        engine: runs the graphs and holds the state.
        config: None only refuses what is not finite.
        guard: judges.
        batch_size: of a step.
        held_out: examples that are not trained on; None where there are none.
        spending: counts what the checks cost.
        good: the last state that passed a check; at first, the one from before the fit.
        factor: on the learning rate; lowered at each rollback.
        rollbacks: so far.
        reason: of the last one.
    """

    engine: Engine
    config: GuardConfig | None
    guard: Guard
    batch_size: int
    held_out: HeldOut | None
    spending: Spending
    good: TrainState
    factor: float = 1.0
    rollbacks: int = 0
    reason: str = ""
    interval: Interval = field(default_factory=Interval)

    def __post_init__(self) -> None:
        if self.config is not None and self.held_out is not None:
            x, y = self.held_out
            size = min(self.config.held_out, len(x))
            rows = np.arange(size) * len(x) // size  # spread, for examples may be sorted
            self.held_out = (x[rows], y[rows])

    def begin(self) -> None:
        """Measures the adapter before the first step."""
        measured = self._measure()
        if measured is not None:
            self.guard.expect(*measured)

    def after(self, loss: float, metric: float, examples: int, rate: float, *, last: bool) -> bool:
        """Takes a step; checks if it is time. Returns whether training may go on.

        Raises:
            DivergedError: it may not, and no state since the start was good.
        """
        fault: DivergedError | None = None
        if not math.isfinite(loss):
            fault = NonFiniteLossError(f"the loss is {loss}")
        else:
            self.interval.add(loss, metric, examples, rate)
            if last or self._due():
                fault = self._check()
        return fault is None or self._roll_back(fault, rate, last=last)

    def settle(self, rate: float) -> bool:
        """Rolls back a state that could be saved, but never restored. Returns as :meth:`after`."""
        fault = _not_finite(self.engine.state())
        return fault is None or self._roll_back(fault, rate, last=False)

    def to_notes(self) -> dict[str, Any]:
        """What a checkpoint keeps beside ``good``."""
        return {
            "guard": self.guard.to_notes(),
            "interval": asdict(self.interval),
            "factor": self.factor,
            "rollbacks": self.rollbacks,
            "reason": self.reason,
        }

    def resume(self, notes: Mapping[str, Any], good: TrainState) -> None:
        """Goes on from what :meth:`to_notes` wrote."""
        self.guard = Guard.from_notes(notes["guard"])
        self.interval = Interval(**notes["interval"])
        self.factor, self.rollbacks = notes["factor"], notes["rollbacks"]
        self.reason, self.good = notes["reason"], good

    def _due(self) -> bool:
        if self.config is None:
            return False
        if self.guard.checks == 0:
            return self.interval.examples >= FIRST_EXAMPLES
        held_out = 0 if self.held_out is None else len(self.held_out[0])
        return self.interval.steps >= self.config.check_every(self.batch_size, held_out)

    def _check(self) -> DivergedError | None:
        state = self.engine.state()
        fault = _not_finite(state)
        if fault is not None or self.config is None:
            return fault
        seen = self.interval.observed(state.adapter, self.good)
        measured = self._measure()
        if measured is not None:
            _, metric, count = measured
            seen = replace(seen, held_out=metric, held_out_examples=count)
        reason = self.guard.check(seen)
        if reason:
            return DivergedError(reason)
        self.good, self.interval = state, Interval()
        return None

    def _measure(self) -> tuple[float, float, int] | None:
        """Loss and metric on the held-out examples, and how many they are."""
        if self.config is None or self.held_out is None:
            return None
        x, y = self.held_out
        sums = np.zeros(3)
        parts = list(batches.in_order(len(x), self.batch_size))
        for rows in parts:
            sums += self.engine.evaluate(batches.gather(x, y, rows, self.batch_size))
        self.spending.evaluated(len(x), len(parts))
        return float(sums[0] / sums[2]), float(sums[1] / sums[2]), len(x)

    def _roll_back(self, fault: DivergedError, rate: float, *, last: bool) -> bool:
        self.reason, self.interval = str(fault), Interval()
        self.rollbacks += 1
        tries = 0 if self.config is None else self.config.max_rollbacks
        over = last or self.rollbacks > tries
        if over and self.guard.checks == 0:
            raise type(fault)(
                f"{fault}, with a learning rate of {rate:.3g}; the adapter from before this fit "
                "is back. Lower the learning rate, or look for outliers in x"
            )
        self.engine.load_state(self.good)
        if self.config is not None:
            self.factor *= self.config.backoff
        return not over or last


def _not_finite(state: TrainState) -> NonFiniteLossError | None:
    for what, arrays in (("adapter", state.adapter), ("optimiser", state.optimizer)):
        if not all(np.isfinite(array).all() for array in arrays.values()):
            return NonFiniteLossError(f"a step left the {what} with values that are not finite")
    return None
