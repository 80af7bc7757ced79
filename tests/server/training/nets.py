"""A model, its data and a run, for this process and for those that the tests start.

Run by itself it trains as its arguments say: OUT.npz CASE...; under torchrun it is one of several.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from rootlet_server.training import Arrays, TrainingData, train
from rootlet_server.training.recipe import make_config

BATCH, STEPS = 60, 14
BASE = {
    "training": {"epochs": 2, "batch_size": BATCH},
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
    "engine": {"device": "cpu"},
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.outer(self.inner(x).relu())


class Residual(nn.Module):
    """Blocks in a Sequential, as FSDP2 and checkpointing look for them."""

    def __init__(self, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Linear(64, width)
        self.layers = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.layers(self.embedding(x)))


def residual(**settings) -> Residual:
    torch.manual_seed(0)
    return Residual(**settings)


def digits() -> TrainingData:
    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    return TrainingData(
        train=Arrays.of(x[:400], y[:400]), held_out=Arrays.of(x[400:600], y[400:600])
    )


def flat(model: nn.Module) -> torch.Tensor:
    """All of a model's state as one vector, by name."""
    state = model.state_dict()
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def config(**changes):
    """The base configuration with some tables' values changed."""
    tables = BASE | changes
    return make_config({name: BASE.get(name, {}) | table for name, table in tables.items()})


def main() -> None:
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[2])
    found, keys = {}, {}
    for name, case in cases.items():
        out = case.pop("out", None)
        trained = train(residual(), digits(), config(**case), out=out)
        found[name] = flat(trained.model).numpy()
        keys[name] = np.array([trained.loss, trained.metric, trained.resumed_from_step])
    rank = os.environ.get("RANK", "0")
    path = Path(sys.argv[1])
    np.savez(path.with_name(f"{path.stem}-{rank}.npz"), **found,
             **{f"{name}/measured": value for name, value in keys.items()})  # fmt: skip
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
