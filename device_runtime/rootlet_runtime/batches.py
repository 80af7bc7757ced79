"""The order in which examples are seen: a pure function of one seed.

The permutation of epoch ``e`` is ``default_rng([seed, e]).permutation(n)``, so a resumed ``fit``
needs the seed and the step, nothing else. Replayed rows follow permutations of their own, cycle
``c`` being ``default_rng([seed, c, 1]).permutation(replayed)``: they are used equally often, or
once more. Every batch has the same size: a ragged last one repeats its first row with weight 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
MAX_SEED = 2**63
_REPLAY_STREAM = 1


@dataclass(frozen=True)
class Batch:
    """Examples ``x``, labels ``y`` and weights ``w``; ``examples`` of them are real.

    ``teacher`` [B, K] and ``teacher_weight`` [B] are there where the train graph takes them.
    """

    x: AnyArray
    y: AnyArray
    w: npt.NDArray[np.float32]
    examples: int
    teacher: npt.NDArray[np.float32] | None = None
    teacher_weight: npt.NDArray[np.float32] | None = None

    @property
    def arrays(self) -> dict[str, AnyArray]:
        """What is fed to a graph, by the name of its input."""
        fed = {"x": self.x, "y": self.y, "w": self.w}
        if self.teacher is not None and self.teacher_weight is not None:
            fed |= {"teacher": self.teacher, "teacher_weight": self.teacher_weight}
        return fed


Teacher = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Outputs [N, K] to learn beside the labels, and the weight [N] of each row."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which rows make up each step of a ``fit``.

    The rows 0..examples-1 are fresh: each is seen once an epoch. Where ``replayed`` rows follow
    them, every batch holds ``replay_per_batch`` of those and fewer fresh ones.
    """

    seed: int
    examples: int
    batch_size: int
    epochs: int
    replayed: int = 0
    replay_per_batch: int = 0

    @property
    def fresh_per_batch(self) -> int:
        """Fresh rows of a full batch."""
        return self.batch_size - self.replay_per_batch

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return math.ceil(self.examples / self.fresh_per_batch)

    @property
    def steps(self) -> int:
        """Steps of the whole ``fit``."""
        return self.steps_per_epoch * self.epochs

    def rows(self, start: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """The real rows of each step, from step ``start`` on."""
        for step in range(start, self.steps):
            epoch, index = divmod(step, self.steps_per_epoch)
            if index == 0 or step == start:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
            fresh = order[index * self.fresh_per_batch : (index + 1) * self.fresh_per_batch]
            yield np.concatenate([fresh, self._replayed(step)]) if self.replayed else fresh

    def replay_uses(self) -> npt.NDArray[np.int64]:
        """How often the whole ``fit`` uses each replayed row: [replayed]."""
        cycles, rest = divmod(self.steps * self.replay_per_batch, max(self.replayed, 1))
        uses = np.full(self.replayed, cycles, np.int64)
        uses[self._cycle(cycles)[:rest]] += 1
        return uses

    def _replayed(self, step: int) -> npt.NDArray[np.int64]:
        """The replayed rows of a step."""
        first, end = step * self.replay_per_batch, (step + 1) * self.replay_per_batch
        cycles = range(first // self.replayed, (end - 1) // self.replayed + 1)
        rows = np.concatenate([self._cycle(cycle) for cycle in cycles])
        start = first - cycles[0] * self.replayed
        return self.examples + rows[start : start + self.replay_per_batch]

    def _cycle(self, cycle: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, cycle, _REPLAY_STREAM])
        return rng.permutation(self.replayed)


def draw_seed(rng: np.random.Generator) -> int:
    """The one number that a ``fit`` takes from the caller's generator."""
    return int(rng.integers(MAX_SEED))


def gather(
    x: AnyArray,
    y: AnyArray,
    rows: npt.NDArray[np.int64],
    size: int,
    teacher: Teacher | None = None,
) -> Batch:
    """The batch of these rows, padded to ``size``."""
    padded = pad_rows(rows, size)
    w = np.zeros(size, np.float32)
    w[: len(rows)] = 1
    taught = () if teacher is None else (part[padded] for part in teacher)
    return Batch(x[padded], y[padded], w, len(rows), *taught)


def pad_rows(rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """``rows``, then its first one until there are ``size``."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.full(size - len(rows), rows[0])])


def in_order(examples: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows 0, 1, 2, … in batches: for evaluation and prediction."""
    for start in range(0, examples, size):
        yield np.arange(start, min(start + size, examples))
