"""Training by the pure step: one run for each rate, all of them at once where the model is small.

Every rule gets the same: Adam, the rate warmed up and taken down to zero linearly, the same order
of the examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rootlet_runtime.schedule import RateSchedule
from rootlet_server.compiler.flat import flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rootlet_server.bench.problem import Share
    from rootlet_server.compiler.build import Built

    Tensors = Mapping[str, Tensor]

WARMUP = 0.1
CHUNK = 200


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Adapters after training, stacked along a first dimension [R], one for each rate."""

    rates: tuple[float, ...]
    adapters: dict[str, Tensor]

    def one(self, index: int) -> dict[str, Tensor]:
        """The adapter of one rate."""
        return {name: value[index] for name, value in self.adapters.items()}


def rows_of(examples: int, batch_size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of every batch; the last few examples of an epoch that fill none are left out."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(examples))
        yield from order[: examples - examples % batch_size].split(batch_size)


def train(
    built: Built,
    data: Share,
    *,
    rates: tuple[float, ...],
    epochs: int,
    batch_size: int,
    seed: int,
    stacked: bool,
) -> Trained:
    """Train from the initial adapter at each rate.

    Args:
        built: the step and its tensors.
        data: the device's training examples.
        rates: peak learning rates.
        epochs: passes over the data.
        batch_size: examples of a step.
        seed: of the order.
        stacked: step all rates at once by ``vmap``; they stay independent.
    """
    groups = [rates] if stacked else [(rate,) for rate in rates]
    parts = [
        _train_group(built, data, group, epochs=epochs, batch_size=batch_size, seed=seed)
        for group in groups
    ]
    adapters = {name: torch.cat([part[name] for part in parts]) for name in built.adapter}
    return Trained(rates=rates, adapters=adapters)


def _train_group(
    built: Built, data: Share, rates: tuple[float, ...], *, epochs: int, batch_size: int, seed: int
) -> dict[str, Tensor]:
    step, count = built.step, len(rates)

    def update(  # noqa: PLR0917 (stacked by position)
        adapter: Tensors, state: Tensors, rate: Tensor, x: Tensor, y: Tensor, number: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        _, _, adapter, state = step.train(
            built.frozen, adapter, state, x, y, torch.ones(len(y)), rate, number
        )
        return adapter, state

    run = torch.func.vmap(update, (0, 0, 0, None, None, None), randomness="same")
    adapter = {name: torch.stack([value] * count) for name, value in built.adapter.items()}
    state = {name: torch.zeros_like(adapter[name.partition("/")[2]]) for name in built.step.state}
    steps = len(data) // batch_size * epochs
    schedule = RateSchedule(decay="linear", warmup=WARMUP)
    peak = torch.tensor(rates)
    with torch.no_grad():
        batches = rows_of(len(data), batch_size, epochs, seed)
        for number, rows in enumerate(batches):
            inputs = (
                adapter, state, peak * schedule.factor(number, steps), data.x[rows], data.y[rows],
                torch.tensor(float(number + 1)),
            )  # fmt: skip
            if number == 0:
                run = flat(run, *inputs)
            adapter, state = run(*inputs)
    return adapter


def accuracies(built: Built, trained: Trained, data: Share, *, stacked: bool) -> list[float]:
    """Share of right answers of each rate's adapter."""

    def predict(adapter: Tensors, x: Tensor) -> Tensor:
        return built.step.predict(built.frozen, adapter, x)

    def right(call: Callable[[Tensor], Tensor]) -> Tensor:
        chunks = zip(data.x.split(CHUNK), data.y.split(CHUNK), strict=True)
        return sum(
            ((call(x).argmax(-1) == y).sum(-1) for x, y in chunks), start=torch.tensor(0)
        ) / len(data)

    with torch.no_grad():
        if stacked:
            run = torch.func.vmap(predict, (0, None))
            return [float(value) for value in right(lambda x: run(trained.adapters, x))]
        return [
            float(right(lambda x, n=n: predict(trained.one(n), x)))  # type: ignore[misc]
            for n in range(len(trained.rates))
        ]
