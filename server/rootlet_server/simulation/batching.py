"""What a client is asked to do, and which examples it sees at which step.

Order, batch size, padding and rates are those of ``rootlet_runtime.Trainer.fit`` on a device.

Shape legend: K clients of a chunk, B examples of a batch, S steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.batches import MAX_SEED
from rootlet_runtime.schedule import ROUND
from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import draws

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_ROUND_STREAM = 7


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """What a client is asked to do in a round; the same names as in a device's ``TrainRequest``.

    Attributes:
        epochs: passes over the client's examples.
        batch_size: examples of a step; a client with fewer takes all of them.
        learning_rate: step size at full rate; it is warmed up within the round, as on a device.
        measure: whether the received and the trained adapter are measured on the examples.

    Raises:
        SimulationConfigError: a value outside its bounds.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    measure: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise SimulationConfigError(
                f"epochs {self.epochs}, batch_size {self.batch_size}: both must be at least 1"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SimulationConfigError(
                f"learning_rate {self.learning_rate}: must be positive and finite"
            )

    def steps(self, examples: int) -> int:
        """Steps of a client with so many examples."""
        return self.epochs * math.ceil(examples / min(self.batch_size, examples))


def client_seeds(seed: int, round_: int, clients: Sequence[int]) -> list[int]:
    """The number that each client's ``fit`` draws for its order of examples in a round."""
    drawn = draws.bits(np.array(clients, np.int64), seed, _ROUND_STREAM, round_)
    found: list[int] = (drawn % np.uint64(MAX_SEED)).tolist()
    return found


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Which example every client sees at every step.

    Attributes:
        rows: [S, K, B], into the chunk's examples.
        weights: [S, K, B].
        rates: [S, K], learning rates.
        steps: [K], not increasing.
        counts: [S, K], real examples.
    """

    rows: Tensor
    weights: Tensor
    rates: Tensor
    steps: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def active(self, step: int) -> int:
        """How many clients still train."""
        return int((self.steps > step).sum())


def plan_batches(sizes: Sequence[int], seeds: Sequence[int], training: LocalTraining) -> Batches:
    """The batches of a chunk whose clients are sorted by steps, largest first.

    Args:
        sizes: examples of each client.
        seeds: of each client's order.
        training: what all of them are asked to do.
    """
    steps = np.array([training.steps(n) for n in sizes], np.int64)
    longest, clients, width = int(steps.max()), len(sizes), training.batch_size
    rows = np.zeros((longest, clients, width), np.int64)
    counts = np.zeros((longest, clients), np.int64)
    rates = np.zeros((longest, clients), np.float32)
    factors: dict[int, npt.NDArray[np.float32]] = {}
    offset = 0
    for k, (n, seed) in enumerate(zip(sizes, seeds, strict=True)):
        total, size = int(steps[k]), min(width, n)
        each = total // training.epochs
        table = np.full((training.epochs, each * size), -1, np.int64)
        for epoch in range(training.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(n)
            table[epoch, :n] = order
        mine = table.reshape(total, size)
        counts[:total, k] = (mine >= 0).sum(1)
        rows[:total, k, :size] = np.where(mine >= 0, mine, mine[:, :1]) + offset
        rows[:total, k, size:] = rows[:total, k, :1]
        if total not in factors:
            factors[total] = np.array(
                [training.learning_rate * ROUND.factor(i, total) for i in range(total)], np.float32
            )
        rates[:total, k] = factors[total]
        offset += n
    weights = np.arange(width) < counts[:, :, None]
    return Batches(
        rows=torch.from_numpy(rows),
        weights=torch.from_numpy(weights.astype(np.float32)),
        rates=torch.from_numpy(rates),
        steps=steps,
        counts=counts,
    )
