"""A federated task of real data: MNIST, a small base that knows upright digits, turned digits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import rotate
from torch import nn

from rootlet_runtime.bundle import Bundle
from rootlet_server.bench.task_handwriting import pictures
from rootlet_server.compiler import CompileConfig, compile_bundle
from rootlet_server.training import Arrays, FullTrainingConfig, TrainingData, train

Digits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


DFA = CompileConfig(rule="dfa")


def turned_digits(
    folder: Path, configs: Mapping[str, CompileConfig] = MappingProxyType({"dfa": DFA})
) -> tuple[list[Bundle], Digits]:
    """Bundles whose base learnt 2,000 upright digits, and the other 3,000, turned by 60 degrees.

    Args:
        folder: where the bundles go.
        configs: how each is compiled, by its name.
    """
    x, y = pictures()
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    upright = TrainingData(train=Arrays.of(x[:2000], y[:2000]))
    base = train(base, upright, FullTrainingConfig(epochs=10, batch_size=50)).model
    turned = rotate(x[2000:], 60, axes=(1, 2), reshape=False, order=1).astype(np.float32)
    bundles = []
    for name, config in configs.items():
        compiled = compile_bundle(
            base, calibration_x=x[:128], config=config, name=name, version=1, signing_key=None,
            out=folder / f"{name}.rootlet",
        )  # fmt: skip
        bundles.append(Bundle.load(compiled.path, trusted_keys=[], allow_unsigned=True))
    return bundles, (turned, y[2000:])
