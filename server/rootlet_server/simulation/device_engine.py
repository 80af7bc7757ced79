"""The stated fallback: one client at a time, by the runtime that devices run.

It is slower by far, and it is the reference that the stacked engine is held to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from rootlet_runtime.control_variates import ControlVariates
from rootlet_runtime.errors import DivergedError
from rootlet_runtime.schedule import ROUND
from rootlet_runtime.trainer import Trainer
from rootlet_server.simulation.engine import ChunkResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from rootlet_runtime.bundle import Bundle
    from rootlet_runtime.fit import FitResult
    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.controls import ControlTask
    from rootlet_server.simulation.population import Examples

    Arrays = Mapping[str, npt.NDArray[Any]]


class Drawn:
    """Stands in the place of a generator of which a ``fit`` takes one number: this one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def integers(self, *_: int) -> int:
        """The number."""
        return self._number


class DeviceEngine:
    """Trains clients by ``Trainer.fit``, as a device does in a round.

    Args:
        bundle: what they run.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._trainer = Trainer(bundle)

    def train(
        self,
        received: Arrays,
        clients: Sequence[Examples],
        seeds: Sequence[int],
        training: LocalTraining,
        control: ControlTask | None = None,
    ) -> ChunkResult:
        """As ``engine.train_chunk``; the optimiser starts anew."""
        trainer, rows = self._trainer, []
        drifts: list[Arrays] = []
        for k, ((x, y), seed) in enumerate(zip(clients, seeds, strict=True)):
            trainer.load_adapter(received)
            own = None if control is None else _variates(control, k)
            before = trainer.evaluate(x, y).metric if training.measure else np.nan
            finite, loss, metric = True, np.nan, np.nan
            try:
                fit = trainer.fit(
                    x,
                    y,
                    epochs=training.epochs,
                    batch_size=min(training.batch_size, trainer.bundle.manifest.max_batch),
                    learning_rate=training.learning_rate,
                    rng=cast("np.random.Generator", Drawn(seed)),
                    schedule=ROUND,
                    elastic=own,
                )
                loss, metric = fit.loss, fit.metric
                if own is not None:
                    drifts.append(_drift(own, received, trainer.adapter, fit))
            except DivergedError:
                finite = False
                if own is not None:
                    drifts.append({name: np.zeros_like(value) for name, value in own.own.items()})
            after = trainer.evaluate(x, y).metric if training.measure else np.nan
            rows.append((trainer.adapter, len(x), training.steps(len(x)),
                         loss, metric, before, after, finite))  # fmt: skip
        adapters, sizes, steps, loss_, metric_, received_, trained, finite_ = zip(
            *rows, strict=True
        )
        return ChunkResult(
            adapter={
                name: torch.from_numpy(np.stack([each[name] for each in adapters]))
                for name in received
            },
            state={},
            examples=np.array(sizes, np.int64),
            steps=np.array(steps, np.int64),
            loss=np.array(loss_),
            metric=np.array(metric_),
            received=np.array(received_),
            trained=np.array(trained),
            finite=np.array(finite_),
            control=None
            if control is None
            else {
                name: torch.from_numpy(np.stack([each[name] for each in drifts]))
                for name in received
            },
        )

    def evaluate(
        self, adapter: Arrays, clients: Sequence[Examples]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean loss and metric of one adapter on each client's examples."""
        self._trainer.load_adapter(adapter)
        found = [self._trainer.evaluate(x, y) for x, y in clients]
        return np.array([r.loss for r in found]), np.array([r.metric for r in found])


def _variates(control: ControlTask, client: int) -> ControlVariates:
    return ControlVariates(
        own={name: value[client] for name, value in control.own.items()}, mean=dict(control.mean)
    )


def _drift(own: ControlVariates, received: Arrays, trained: Arrays, fit: FitResult) -> Arrays:
    """What a device tells: nothing changes where it went back to an earlier adapter."""
    if fit.rolled_back:
        return {name: np.zeros_like(value) for name, value in own.own.items()}
    after = own.next_own(dict(received), dict(trained))
    return {name: value - own.own[name] for name, value in after.items()}
