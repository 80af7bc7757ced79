"""The guard: notices a training that has diverged, so that it can be rolled back.

Every ``check_every`` steps it looks at what training gives away for nothing (loss and metric of
the steps, taken before their updates; how far each tensor of the adapter moved) and, where the
device has held-out examples, at the adapter's metric on some of them. A training has diverged when

* a loss, or a value of the adapter, is not finite;
* the mean loss is worse than at the start and beyond the best interval's mean by 6 standard
  deviations of its steps and by half of itself;
* accuracy, in the steps or held out, has fallen below its best by 3 standard errors and by 5
  points, or from above chance to chance: the share of the most frequent class, which a net of dead
  units gets right;
* the squared error of a regression has come from below half the targets' variance back to it,
  which is the error of a constant;
* the adapter moves, for each unit of learning rate, 10 times as fast as at any check before;
* dead units: a tensor has stopped while others move (a dead layer passes no credit).

Standard errors are those of proportions with one success and one failure added, so that few
examples raise no alarm. What these checks cannot see: a slow loss of accuracy within the bounds,
and, without held-out examples, what the last steps did.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from rootlet_runtime.batches import AnyArray

Z = 3.0
LEAST_FALL = 0.05
LOSS_DEVIATIONS, LOSS_FACTOR = 6.0, 1.5
UPDATE_FACTOR, UPDATE_CHECKS = 10.0, 2
STOPPED, MOVING = 1e-6, 1e-3
FIRST_EXAMPLES, STREAM_EXAMPLES = 64, 256


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """How a fit is guarded.

    Attributes:
        held_out: most held-out examples that a check evaluates.
        held_out_share: of the examples trained on, at most this share is evaluated.
        max_rollbacks: after this many, training ends with the last good adapter.
        backoff: factor on the learning rate at each rollback.

    Raises:
        ValueError: a value outside its bounds.
    """

    held_out: int = 128
    held_out_share: float = 0.1
    max_rollbacks: int = 5
    backoff: float = 0.25

    def __post_init__(self) -> None:
        if self.held_out < 1 or self.max_rollbacks < 0:
            raise ValueError(f"{self}: held_out is at least 1 and max_rollbacks at least 0")
        for name in ("held_out_share", "backoff"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must lie between 0 and 1")

    def check_every(self, batch_size: int, held_out: int) -> int:
        """Steps between two checks, for so many held-out examples a check."""
        stream = math.ceil(STREAM_EXAMPLES / batch_size)
        return max(stream, math.ceil(held_out / (self.held_out_share * batch_size)))


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a check looks at.

    Attributes:
        loss: mean over the steps since the last check.
        loss_deviation: their standard deviation.
        metric: mean accuracy or squared error of those steps.
        examples: examples of those steps.
        speeds: for each tensor of the adapter, how far it moved by unit of learning rate.
        held_out: the metric on the held-out examples, if there are any.
        held_out_examples: how many there are.
    """

    loss: float
    loss_deviation: float
    metric: float
    examples: int
    speeds: Mapping[str, float]
    held_out: float | None = None
    held_out_examples: int = 0


@dataclass(kw_only=True)
class Guard:
    """What is remembered between checks; plain numbers, kept in a checkpoint.

    Attributes:
        classifies: whether the metric is accuracy, or squared error.
        chance: the metric of the best constant answer: the share of the most frequent class, or
            the variance of the targets.
        first_loss: before training, on enough held-out examples; else of the first check.
        best_loss: the lowest mean loss of an interval, and its steps' deviation.
        best: the best metric of the steps, with the examples behind it.
        best_held_out: the best metric on the held-out examples.
        speeds: the largest speed of each tensor.
        checks: checks passed.
    """

    classifies: bool
    chance: float
    first_loss: float | None = None
    best_loss: tuple[float, float] | None = None
    best: tuple[float, int] | None = None
    best_held_out: float | None = None
    speeds: dict[str, float] = field(default_factory=dict)
    checks: int = 0

    def to_notes(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def from_notes(cls, notes: Mapping[str, Any]) -> Self:
        """The guard that :meth:`to_notes` wrote."""
        pairs = {name: tuple(notes[name]) for name in ("best_loss", "best") if notes[name]}
        return cls(**{**notes, **pairs})

    def check(self, seen: Observation) -> str:
        """Why the training has diverged; empty, and remembered, if it has not."""
        reason = (
            self._loss(seen)
            or self._metric("the steps", seen.metric, seen.examples, self.best)
            or self._held_out(seen)
            or self._speed(seen.speeds)
        )
        if not reason:
            self._remember(seen)
        return reason

    def expect(self, loss: float, metric: float, examples: int) -> None:
        """Takes loss and metric on the held-out examples before the first step."""
        self.best_held_out = metric
        if examples >= FIRST_EXAMPLES:  # of fewer, the mean loss says little
            self.first_loss, self.best_loss = loss, (loss, 0.0)

    def _loss(self, seen: Observation) -> str:
        if self.best_loss is None or self.first_loss is None:
            return ""
        best, deviation = self.best_loss
        bound = max(self.first_loss, LOSS_FACTOR * best, best + LOSS_DEVIATIONS * deviation)
        if seen.loss <= bound:
            return ""
        return f"the loss rose from {best:.3g} to {seen.loss:.3g}"

    def _held_out(self, seen: Observation) -> str:
        if seen.held_out is None or self.best_held_out is None:
            return ""
        best = (self.best_held_out, seen.held_out_examples)
        where = f"{seen.held_out_examples} held-out examples"
        return self._metric(where, seen.held_out, seen.held_out_examples, best)

    def _metric(self, where: str, now: float, n: int, best: tuple[float, int] | None) -> str:
        if best is None:
            return ""
        before, n_before = best
        if not self.classifies:
            if before < self.chance / 2 and now >= self.chance:
                return (
                    f"the squared error on {where} rose from {before:.3g} to {now:.3g}, no better "
                    "than a constant answer"
                )
            return ""
        fall = f"the accuracy on {where} fell from {before:.1%} to {now:.1%}"
        if before > self.chance + Z * _error(self.chance, n_before) and (
            now <= self.chance + _error(self.chance, n)
        ):
            return f"{fall}, no better than always the same class"
        error = math.hypot(_error(before, n_before), _error(before, n))
        return fall if before - now > max(LEAST_FALL, Z * error) else ""

    def _speed(self, speeds: Mapping[str, float]) -> str:
        known = {name: speeds[name] for name in self.speeds if self.speeds[name] > 0}
        moving = any(speed >= MOVING * self.speeds[name] for name, speed in known.items())
        for name, speed in known.items():
            if moving and speed <= STOPPED * self.speeds[name]:
                return f"dead units: {name} no longer moves"
        before = math.hypot(*self.speeds.values())
        now = math.hypot(*speeds.values())
        if self.checks >= UPDATE_CHECKS and before > 0 and now > UPDATE_FACTOR * before:
            return f"the adapter moves {now / before:.0f} times as fast as ever before"
        return ""

    def _remember(self, seen: Observation) -> None:
        self.checks += 1
        if self.first_loss is None:
            self.first_loss = seen.loss
        if self.best_loss is None or seen.loss < self.best_loss[0]:
            self.best_loss = (seen.loss, seen.loss_deviation)
        if self.best is None or self._better(seen.metric, self.best[0]):
            self.best = (seen.metric, seen.examples)
        if seen.held_out is not None and (
            self.best_held_out is None or self._better(seen.held_out, self.best_held_out)
        ):
            self.best_held_out = seen.held_out
        for name, speed in seen.speeds.items():
            self.speeds[name] = max(speed, self.speeds.get(name, 0.0))

    def _better(self, now: float, before: float) -> bool:
        return now > before if self.classifies else now < before


def chance_of(y: AnyArray, *, classifies: bool) -> float:
    """The metric of the best constant answer to the labels or targets ``y``."""
    if classifies:
        return float(np.bincount(y).max() / len(y))
    return float(y.astype(np.float64).var(axis=0).mean())


def _error(share: float, n: int) -> float:
    """Standard error of a proportion of ``n``, with one success and one failure added."""
    smoothed = (share * n + 1) / (n + 2)
    return math.sqrt(smoothed * (1 - smoothed) / n)
