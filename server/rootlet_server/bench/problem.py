"""What a task hands to the harness: a frozen base, data to calibrate on, and a device's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from rootlet_server.compiler.defaults import Architecture

    Floats = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

CALIBRATION_EXAMPLES = 128


@dataclass(frozen=True, kw_only=True)
class Share:
    """Examples x [n, ...] and their classes y [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One drawing of a task.

    Attributes:
        model: the base with its head, trained on the source domain.
        calibration_x: examples of the source domain.
        train, validation, test: the device's own data, from the shifted domain; rates are chosen
            on ``validation`` and reported on ``test``.
        base_accuracy: of the unadapted model on source-domain examples it was not trained on;
            None where the base has no source task of its own.
    """

    model: nn.Module
    calibration_x: Tensor
    train: Share
    validation: Share
    test: Share
    base_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A fixed task of the suite.

    Attributes:
        name: as on the command line.
        architecture: in words.
        kind: what the compiler takes it for, and chooses its default by.
        make: draws the problem of a seed.
        batch_size, epochs: the budget of every rule; ``epochs`` are tried in turn.
        rates: learning rates, tried alike for every rule.
        seeds: how many drawings the full suite takes.
        stacked: whether the runs of all rates are stepped at once; large models step in turn.
        studied: whether rows that are there for study run on it.
        origin: data and model with their licences, for the notes of the table.
    """

    name: str
    architecture: str
    kind: Architecture
    make: Callable[[int], Problem]
    batch_size: int
    epochs: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    stacked: bool
    origin: str
    studied: bool = True


def share(x: Floats | Tensor, y: Labels | Tensor) -> Share:
    """Examples as tensors."""
    return Share(x=torch.as_tensor(x), y=torch.as_tensor(y))


def split(x: Floats | Tensor, y: Labels | Tensor, *sizes: int) -> tuple[Share, ...]:
    """Consecutive shares of the given sizes, the last one of all that is left."""
    edges = np.cumsum([0, *sizes])
    ranges = [slice(a, b) for a, b in zip(edges, [*edges[1:], None], strict=True)]
    return tuple(share(x[rows], y[rows]) for rows in ranges)


def train_base(
    model: nn.Module,
    source: Share,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
) -> nn.Module:
    """Train a base by backprop (Adam, linear decay) on the source domain; order from torch's seed.

    Args:
        model: changed in place.
        source: the examples.
        epochs: passes over them.
        learning_rate: at the start.
        batch_size: examples of a step.
    """
    optimiser = torch.optim.Adam(model.parameters(), learning_rate, weight_decay=1e-5)
    steps = epochs * -(-len(source) // batch_size)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(source)).split(batch_size):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(source.x[rows]), source.y[rows])
            loss.backward()
            optimiser.step()
            decay.step()
    return model.eval()


def drawn_for_relu(model: nn.Module) -> nn.Module:
    """Redraw the weights as He et al. (2015) do, so that deep nets start to learn; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def train_head(model: nn.Module, source: Share) -> None:
    """Train ``model.head`` alone: the features are computed once."""
    head: nn.Linear = model.head  # type: ignore[assignment]
    model.head = nn.Identity()
    model.eval()
    with torch.no_grad():
        features = torch.cat([model(x) for x in source.x.split(128)])
    train_base(head, share(features, source.y), epochs=30, learning_rate=5e-3)
    model.head = head


def accuracy(model: nn.Module, examples: Share, chunk: int = 256) -> float:
    """Share of right answers of a plain module."""
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(examples.x.split(chunk), examples.y.split(chunk), strict=True)
        )
    return right / len(examples)
