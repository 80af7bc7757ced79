"""Scanned digits of 8 x 8 pixels: a dense base, turned digits on the device, or new classes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import nn

from rootlet_server.bench.problem import (
    CALIBRATION_EXAMPLES,
    Problem,
    Task,
    accuracy,
    drawn_for_relu,
    share,
    split,
    train_base,
)

if TYPE_CHECKING:
    from rootlet_server.bench.problem import Floats, Labels

SIDE = 8
WIDTH = 128
ANGLE = 60.0
OLD_CLASSES = 5
ORIGIN = (
    "1,797 scans of 8 x 8 pixels (Optical Recognition of Handwritten Digits, UCI 1998, CC BY 4.0), "
    "in scikit-learn (BSD-3-Clause)"
)


def dense(outputs: int, depth: int, inputs: int = SIDE * SIDE) -> nn.Sequential:
    """``depth`` hidden layers of 128 units with ReLU, and a head."""
    sizes = [inputs, *[WIDTH] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))


def scans(seed: int) -> tuple[Floats, Labels]:
    """All scans in the order of a seed: pixels [1797, 64] in 0..1, classes [1797]."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    return (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)


def _turned(x: Floats) -> Floats:
    pictures = rotate(x.reshape(-1, SIDE, SIDE), ANGLE, axes=(1, 2), reshape=False, order=1)
    return np.ascontiguousarray(pictures.reshape(len(x), -1), dtype=np.float32)


def turned_digits(seed: int, depth: int) -> Problem:
    """A base for upright digits; the device's are all turned by 60 degrees.

    600 scans train the base, 100 test it; the device has 400 to train on, 200 for validation and
    497 for testing.
    """
    torch.manual_seed(seed)
    x, y = scans(seed)
    source, held, _ = split(x, y, 600, 100)
    model = train_base(drawn_for_relu(dense(10, depth)), source, epochs=40)
    train, validation, test = split(_turned(x[700:]), y[700:], 400, 200)
    return Problem(
        model=model,
        calibration_x=source.x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=test,
        base_accuracy=accuracy(model, held),
    )


def new_digits(seed: int) -> Problem:
    """A base for 0 to 4; the device learns 5 to 9 with a new head.

    150 of its scans train, 150 are for validation, the rest (about 596) for testing.
    """
    torch.manual_seed(seed)
    x, y = scans(seed)
    old = y < OLD_CLASSES
    source, held = split(x[old], y[old], 700)
    model = dense(OLD_CLASSES, 2)
    train_base(drawn_for_relu(model), source, epochs=40)
    learned = accuracy(model, held)
    model[-1] = nn.Linear(WIDTH, 10 - OLD_CLASSES)
    train, validation, test = split(x[~old], y[~old] - OLD_CLASSES, 150, 150)
    return Problem(
        model=model.eval(),
        calibration_x=share(x[old], y[old]).x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=test,
        base_accuracy=learned,
    )


RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TASKS = (
    *(
        Task(
            name=f"digits-{depth}",
            architecture="dense" if depth < 10 else "deep dense",
            kind="dense",
            make=partial(turned_digits, depth=depth),
            batch_size=16,
            epochs=(24,),
            rates=RATES,
            seeds=5,
            stacked=True,
            studied=depth == 2,
            origin=ORIGIN,
        )
        for depth in (2, 6, 10)
    ),
    Task(
        name="new-classes",
        architecture="dense, new head",
        kind="dense",
        make=new_digits,
        batch_size=16,
        epochs=(24,),
        rates=RATES,
        seeds=5,
        stacked=True,
        origin=ORIGIN,
    ),
)
