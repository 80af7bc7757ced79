"""Training of many clients at once: stacked adapters, ragged data by sorting and masking.

Clients are sorted by their number of steps, so that those still training are a prefix of the stack;
the last batch of an epoch is padded with weight 0, as a device pads it. Order of examples, batch
size, learning rates and reported losses are those of ``rootlet_runtime.Trainer.fit`` on a device.

Shape legend: K clients of a chunk, B examples of a batch, S steps.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.batches import MAX_SEED
from rootlet_runtime.schedule import ROUND
from rootlet_runtime.trainer import DEFAULT_BATCH_SIZE
from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import draws

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from rootlet_server.simulation.population import Examples
    from rootlet_server.simulation.step import StackedStep

    Arrays = Mapping[str, npt.NDArray[Any]]

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


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """K trained clients, in the order in which they were given.

    Attributes:
        adapter: [K, ...] by name.
        state: the optimiser's after the last step, [K, ...] by name.
        examples, steps: [K].
        loss, metric: [K], means over the last epoch, each step's taken before its update.
        received, trained: [K], the metric before and after; NaN where it was not measured.
        finite: [K]; False for a client whose loss or adapter left the finite numbers: a device
            answers such a round with an error.
    """

    adapter: dict[str, Tensor]
    state: dict[str, Tensor]
    examples: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    metric: npt.NDArray[np.float64]
    received: npt.NDArray[np.float64]
    trained: npt.NDArray[np.float64]
    finite: npt.NDArray[np.bool_]


def client_seeds(seed: int, round_: int, clients: Sequence[int]) -> list[int]:
    """The number that each client's ``fit`` draws for its order of examples in a round."""
    drawn = draws.bits(np.array(clients, np.int64), seed, _ROUND_STREAM, round_)
    found: list[int] = (drawn % np.uint64(MAX_SEED)).tolist()
    return found


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """Which example every client sees at every step.

    Attributes:
        rows: [S, K, B], into the chunk's examples.
        weights: [S, K, B].
        rates: [S, K], learning rates.
        steps: [K], not increasing.
        counts: [S, K], real examples.
        last_epoch: [S, K], whether the step counts for the reported loss.
    """

    rows: Tensor
    weights: Tensor
    rates: Tensor
    steps: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    last_epoch: npt.NDArray[np.bool_]

    def active(self, step: int) -> int:
        """How many clients still train."""
        return int((self.steps > step).sum())


def plan_batches(sizes: Sequence[int], seeds: Sequence[int], training: LocalTraining) -> _Batches:
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
    first = steps - steps // training.epochs
    return _Batches(
        rows=torch.from_numpy(rows),
        weights=torch.from_numpy(weights.astype(np.float32)),
        rates=torch.from_numpy(rates),
        steps=steps,
        counts=counts,
        last_epoch=np.arange(longest)[:, None] >= first,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: cores are used by workers, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def train_chunk(
    step: StackedStep,
    received: Arrays,
    clients: Sequence[Examples],
    seeds: Sequence[int],
    training: LocalTraining,
    *,
    state: Mapping[str, Tensor] | None = None,
    steps_before: npt.NDArray[np.int64] | None = None,
) -> ChunkResult:
    """Train every client from the same adapter.

    Args:
        step: the stacked step.
        received: the adapter that the server sent.
        clients: each one's checked examples, at least one each.
        seeds: of each one's order; see :func:`client_seeds`.
        training: what they are asked to do.
        state: optimiser state [K, ...] that clients kept from earlier rounds; None starts anew, as
            a device does.
        steps_before: [K], steps that are behind that state.
    """
    with one_thread():
        order = sorted(range(len(clients)), key=lambda k: -training.steps(len(clients[k][0])))
        back = np.argsort(order)
        return _train_sorted(
            step,
            {name: torch.from_numpy(np.asarray(value)) for name, value in received.items()},
            [clients[k] for k in order],
            [seeds[k] for k in order],
            training,
            None if state is None else {name: value[order] for name, value in state.items()},
            None if steps_before is None else steps_before[order],
            back,
        )


def _train_sorted(  # noqa: PLR0917 (one caller)
    step: StackedStep,
    received: dict[str, Tensor],
    clients: Sequence[Examples],
    seeds: Sequence[int],
    training: LocalTraining,
    state: dict[str, Tensor] | None,
    steps_before: npt.NDArray[np.int64] | None,
    back: npt.NDArray[np.int64],
) -> ChunkResult:
    sizes = [len(x) for x, _ in clients]
    count = len(clients)
    plan = plan_batches(sizes, seeds, training)
    x = step.encode(torch.from_numpy(np.concatenate([each for each, _ in clients])))
    y = torch.from_numpy(np.concatenate([each for _, each in clients]))
    adapter = {
        name: value.unsqueeze(0).expand(count, *value.shape).contiguous()
        for name, value in received.items()
    }
    state = step.initial_state(count) if state is None else dict(state)
    number = torch.zeros(count) if steps_before is None else torch.from_numpy(steps_before).float()
    before = measured(step, received, x, y, sizes, shared=True)[1] if training.measure else None
    sums = np.zeros((2, count))
    finite = np.ones(count, bool)
    for s in range(len(plan.rows)):
        a = plan.active(s)
        rows, rate = plan.rows[s, :a], plan.rates[s, :a]
        number[:a] += 1
        loss, metric, new, new_state = step.train(
            {name: value[:a] for name, value in adapter.items()},
            {name: value[:a] for name, value in state.items()},
            x[rows], y[rows], plan.weights[s, :a], rate, number[:a],
        )  # fmt: skip
        _put(adapter, new, a)
        _put(state, new_state, a)
        told = np.stack([loss.numpy(), metric.numpy()]).astype(np.float64)
        finite[:a] &= np.isfinite(told[0])
        sums[:, :a] += told * (plan.counts[s, :a] * plan.last_epoch[s, :a])
    for value in (*adapter.values(), *state.values()):
        finite &= value.flatten(1).isfinite().all(1).numpy()
    after = measured(step, adapter, x, y, sizes, shared=False)[1] if training.measure else None
    nothing = np.full(count, np.nan)
    return ChunkResult(
        adapter={name: value[back] for name, value in adapter.items()},
        state={name: value[back] for name, value in state.items()},
        examples=np.array(sizes, np.int64)[back],
        steps=plan.steps[back],
        loss=(sums[0] / sizes)[back],
        metric=(sums[1] / sizes)[back],
        received=(nothing if before is None else before)[back],
        trained=(nothing if after is None else after)[back],
        finite=finite[back],
    )


def _put(stack: dict[str, Tensor], new: Mapping[str, Tensor], active: int) -> None:
    for name, value in new.items():
        if active == len(stack[name]):
            stack[name] = value
        else:
            stack[name][:active] = value


def measured(
    step: StackedStep,
    adapter: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    *,
    shared: bool,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each client's mean loss and metric, in batches of a device's default size, [K] each.

    Args:
        step: the stacked step.
        adapter: one for all where ``shared``, else [K, ...] by name.
        x: the clients' examples one after the other, encoded.
        y: their labels.
        sizes: examples of each client.
        shared: whether one adapter serves all.
    """
    starts, own = np.cumsum([0, *sizes[:-1]]), np.array(sizes)
    limit = min(DEFAULT_BATCH_SIZE, step.manifest.max_batch)
    totals = np.zeros((2, len(sizes)))
    for first in range(0, max(sizes), limit):
        places = first + np.arange(min(limit, max(sizes) - first))
        inside = places < own[:, None]
        keep = inside.any(1)
        rows = torch.from_numpy((starts[:, None] + np.where(inside, places, 0))[keep])
        weights = torch.from_numpy(inside[keep].astype(np.float32))
        mine = adapter if shared else {k: v[torch.from_numpy(keep)] for k, v in adapter.items()}
        loss, metric, _ = step.evaluate(mine, x[rows], y[rows], weights, shared=shared)
        totals[:, keep] += np.stack([loss.numpy(), metric.numpy()])
    return totals[0] / own, totals[1] / own
