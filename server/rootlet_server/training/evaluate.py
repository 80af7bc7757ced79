"""Loss and metric over held-out examples, shared out to all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.training.data import in_order
from rootlet_server.training.losses import example_losses, example_metrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rootlet_server.training.data import Source
    from rootlet_server.training.engine import Engine

BATCH = 256


def evaluate(engine: Engine, source: Source, task: str, workers: int = 0) -> tuple[float, float]:
    """(mean loss, mean metric); all processes call it together and get the same."""
    model = engine.model
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    rows = [part_of(each, engine.rank, engine.world) for each in in_order(len(source), BATCH)]
    batches = source.batches([part for part, _ in rows], workers)
    with torch.no_grad():
        for (x, y), (_, counts) in zip(batches, rows, strict=True):
            sums += counts * _sums(model, task, x.to(engine.device), y.to(engine.device))
    model.train()
    total = engine.total(sums.float() if engine.device.type != "cpu" else sums) / len(source)
    return float(total[0]), float(total[1])


def evaluate_model(
    model: nn.Module, source: Source, task: str, device: torch.device
) -> tuple[float, float]:
    """The same of one model in one process."""
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for x, y in source.batches(in_order(len(source), BATCH), 0):
            sums += _sums(model, task, x.to(device), y.to(device))
    model.train(training)
    return float(sums[0]) / len(source), float(sums[1]) / len(source)


def part_of(rows: Tensor, index: int, parts: int) -> tuple[Tensor, int]:
    """A part of some rows, and 1; an empty part is one row that counts 0, so that all take part."""
    part = rows.tensor_split(parts)[index]
    return (part, 1) if len(part) else (rows[:1], 0)


def _sums(model: nn.Module, task: str, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    losses, metrics = (of(task, output, y).double() for of in (example_losses, example_metrics))
    return torch.stack([losses.sum(), metrics.sum()]).cpu()
