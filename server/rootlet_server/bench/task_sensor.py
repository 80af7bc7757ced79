"""Shoulder exercises seen by a smartwatch: a 1D convolutional net, other people on the device."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from rootlet_server.bench.packages import package_folder
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

NAME = "sensor"
WINDOW, EVERY = 100, 2  # two seconds at 50 Hz, every second sample
PEOPLE, SOURCE_PEOPLE = 10, 5
EXERCISES = 7


class Frames(nn.Module):
    """A 1D convolution as a Linear layer over frames, so that its whole kernel can be adapted."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.linear = nn.Linear(inputs * kernel, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T', outputs] from [N, T, inputs], padded by half a kernel at both ends."""
        x = nn.functional.pad(x, (0, 0, self.kernel // 2, self.kernel // 2))
        out: Tensor = self.linear(x.unfold(1, self.kernel, self.stride).flatten(2))
        return out


class SensorNet(nn.Module):
    """Three convolutions over time with ReLU, mean pooling and a head."""

    def __init__(self, channels: int = 6, width: int = 64, outputs: int = EXERCISES) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                Frames(channels, width, 5, 1),
                Frames(width, width, 5, 2),
                Frames(width, width, 5, 2),
            ]
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of windows [N, T, C]."""
        for layer in self.layers:
            x = layer(x).relu()
        out: Tensor = self.head(x.mean(1))
        return out


@cache
def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windows [n, 50, 6] (acceleration in g, rotation in rad/s), exercise, person, time in 0..1."""
    package_folder("seglearn", NAME)
    package_folder("pandas", NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from seglearn.datasets import load_watch  # noqa: PLC0415

        data = load_watch()
    x, y, person, time = [], [], [], []
    for series, label, subject in zip(data["X"], data["y"], data["subject"], strict=True):
        count = len(series) // WINDOW
        x.append(series[: count * WINDOW].reshape(count, WINDOW, -1)[:, ::EVERY])
        y += [label] * count
        person += [subject] * count
        time += list((np.arange(count) + 0.5) / count)
    return (
        np.concatenate(x).astype(np.float32),
        np.array(y, np.int64),
        np.array(person),
        np.array(time),
    )


def _worn_otherwise(x: np.ndarray) -> np.ndarray:
    """The watch turned by 90 degrees about its face: x and y change places, one with its sign."""
    signs = np.array([-1, 1, 1, -1, 1, 1], np.float32)
    return np.ascontiguousarray(x[:, :, [1, 0, 2, 4, 3, 5]] * signs)


def sensor(seed: int) -> Problem:
    """Five people train the base; the other five wear the watch turned by 90 degrees.

    The first two thirds of each recording train and validate the device, the last third tests it.
    """
    x, y, person, time = windows()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    is_source = np.isin(person, rng.permutation(np.arange(1, PEOPLE + 1))[:SOURCE_PEOPLE])
    order = rng.permutation(np.flatnonzero(is_source))
    mean, std = x[is_source].mean((0, 1)), x[is_source].std((0, 1))
    source, held = split((x[order] - mean) / std, y[order], len(order) - 200)
    model = SensorNet()
    drawn_for_relu(model)
    train_base(model, source, epochs=25)
    target = (_worn_otherwise(x) - mean) / std
    learning = rng.permutation(np.flatnonzero(~is_source & (time < 2 / 3)))
    testing = np.flatnonzero(~is_source & (time >= 2 / 3))
    train, validation = split(target[learning], y[learning], 500)
    return Problem(
        model=model,
        calibration_x=source.x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=share(target[testing], y[testing]),
        base_accuracy=accuracy(model, held),
    )


TASKS = (
    Task(
        name=NAME,
        architecture="1D CNN",
        kind="dense",  # its convolutions are Linear layers over frames
        make=sensor,
        batch_size=16,
        epochs=(12,),
        rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        seeds=5,
        stacked=False,
        origin="smartwatch recordings of shoulder exercises by ten people (Burns et al. 2018) in "
        "seglearn (BSD-3-Clause)",
    ),
)
