"""Training of many clients at once: stacked adapters, ragged data by sorting and masking.

Clients are sorted by their number of steps, so that those still training are a prefix of the stack;
the last batch of an epoch is padded with weight 0, as a device pads it. Order of examples, batch
size, learning rates and reported losses are those of ``rootlet_runtime.Trainer.fit`` on a device.

Shape legend: K clients of a chunk, B examples of a batch, S steps.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.trainer import DEFAULT_BATCH_SIZE
from rootlet_server.simulation.batching import plan_batches
from rootlet_server.simulation.guarding import StackedWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.controls import ControlTask, StackedControl
    from rootlet_server.simulation.population import Examples
    from rootlet_server.simulation.step import StackedStep

    Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """K trained clients, in the order in which they were given.

    Attributes:
        adapter: [K, ...] by name.
        state: the optimiser's after the last step, [K, ...] by name.
        examples, steps: [K].
        loss, metric: [K], means over the last epoch, each step's taken before its update.
        received, trained: [K], the metric before and after; NaN where it was not measured.
        finite: [K]; False for a client whose loss or adapter left the finite numbers and could not
            be rolled back: a device answers such a round with an error.
        control: what changed in each one's control variate, [K, ...] by name; None for none.
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
    control: dict[str, Tensor] | None = None


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
    control: ControlTask | None = None,
) -> ChunkResult:
    """Train every client from the same adapter.

    Args:
        step: the stacked step.
        received: the adapter that the server sent.
        clients: each one's checked examples, at least one each.
        seeds: of each one's order; see :func:`batching.client_seeds`.
        training: what they are asked to do.
        state: optimiser state [K, ...] that clients kept from earlier rounds; None starts anew, as
            a device does.
        steps_before: [K], steps that are behind that state.
        control: SCAFFOLD's correction; None for none.
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
            None if control is None else control.of(np.array(order)).stacked(),
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
    control: StackedControl | None,
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
    watch = StackedWatch(
        received, state, number, plan, [y for _, y in clients],
        np.minimum(sizes, training.batch_size),
        classifies=step.manifest.task == "classification",
    )  # fmt: skip
    report = _Report(plan.steps // training.epochs)
    for s in range(len(plan.rows)):
        a = plan.active(s)
        rows, rate = plan.rows[s, :a], plan.rates[s, :a] * torch.from_numpy(watch.factor[:a])
        number[:a] += 1
        loss, metric, new, new_state = step.train(
            {name: value[:a] for name, value in adapter.items()},
            {name: value[:a] for name, value in state.items()},
            x[rows], y[rows], plan.weights[s, :a], rate, number[:a],
        )  # fmt: skip
        _put(adapter, new, a)
        _put(state, new_state, a)
        if control is not None:
            control.pull(adapter, rate)
        told = np.stack([loss.numpy(), metric.numpy()]).astype(np.float64)
        counted = watch.after(s, told, plan.counts[s, :a], rate.numpy(), adapter, state, number)
        report.add(s, told, plan.counts[s, :a] * counted)
    watch.settle(adapter, state, number)
    finite = ~watch.failed
    for value in (*adapter.values(), *state.values()):
        finite &= value.flatten(1).isfinite().all(1).numpy()
    loss_, metric_ = report.means()
    after = measured(step, adapter, x, y, sizes, shared=False)[1] if training.measure else None
    nothing = np.full(count, np.nan)
    drift = None
    if control is not None:
        drift = control.drift(received, adapter, torch.from_numpy(finite & ~watch.rolled_back))
    return ChunkResult(
        adapter={name: value[back] for name, value in adapter.items()},
        state={name: value[back] for name, value in state.items()},
        examples=np.array(sizes, np.int64)[back],
        steps=watch.steps[back],
        loss=loss_[back],
        metric=metric_[back],
        received=(nothing if before is None else before)[back],
        trained=(nothing if after is None else after)[back],
        finite=finite[back],
        control=None if drift is None else {name: value[back] for name, value in drift.items()},
    )


class _Report:
    """Means over each client's last epoch that had a finite loss, of the steps that count."""

    def __init__(self, steps_per_epoch: npt.NDArray[np.int64]) -> None:
        self._each = steps_per_epoch
        self._epoch = np.zeros(len(steps_per_epoch), np.int64)
        self._sums = np.zeros((3, len(steps_per_epoch)))  # examples, loss, metric

    def add(self, step: int, told: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> None:
        """Take a step: ``told`` [2, a], losses and metrics; ``counts`` [a], 0 if it counts not."""
        a = len(counts)
        epoch = step // self._each[:a]
        begun = np.flatnonzero((counts > 0) & (epoch != self._epoch[:a]))
        self._epoch[begun], self._sums[:, begun] = epoch[begun], 0
        loss, metric = np.where(counts > 0, told, 0.0)
        self._sums[:, :a] += np.stack([counts, loss * counts, metric * counts])

    def means(self) -> npt.NDArray[np.float64]:
        """[2, K], loss and metric; NaN where no step counted."""
        examples = np.where(self._sums[0] > 0, self._sums[0], np.nan)
        found: npt.NDArray[np.float64] = self._sums[1:] / examples
        return found


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
