"""The order in which examples are seen: a pure function of one seed.

The permutation of epoch ``e`` is ``default_rng([seed, e]).permutation(n)``, so a resumed ``fit``
needs the seed and the step, nothing else. Every batch has the same size: a ragged last one repeats
its first row with weight 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
MAX_SEED = 2**63


@dataclass(frozen=True)
class Batch:
    """Examples ``x``, labels ``y`` and weights ``w``; ``examples`` of them are real."""

    x: AnyArray
    y: AnyArray
    w: npt.NDArray[np.float32]
    examples: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which rows make up each step of a ``fit``."""

    seed: int
    examples: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return math.ceil(self.examples / self.batch_size)

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
            yield order[index * self.batch_size : (index + 1) * self.batch_size]


def draw_seed(rng: np.random.Generator) -> int:
    """The one number that a ``fit`` takes from the caller's generator."""
    return int(rng.integers(MAX_SEED))


def gather(x: AnyArray, y: AnyArray, rows: npt.NDArray[np.int64], size: int) -> Batch:
    """The batch of these rows, padded to ``size``."""
    padded = pad_rows(rows, size)
    w = np.zeros(size, np.float32)
    w[: len(rows)] = 1
    return Batch(x[padded], y[padded], w, len(rows))


def pad_rows(rows: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """``rows``, then its first one until there are ``size``."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.full(size - len(rows), rows[0])])


def in_order(examples: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows 0, 1, 2, … in batches: for evaluation and prediction."""
    for start in range(0, examples, size):
        yield np.arange(start, min(start + size, examples))
