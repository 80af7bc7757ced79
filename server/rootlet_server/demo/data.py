"""Handwritten digits, upright for the server and turned for each device.

The 1,797 scans of 8 x 8 pixels that scikit-learn ships (Optical Recognition of Handwritten Digits,
UCI, 1998). The server's base learns from upright ones. Every device holds other scans, all turned
by an angle of its own, as if each camera were mounted askew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

ORIGIN = "Optical Recognition of Handwritten Digits (UCI, 1998), as shipped by scikit-learn"
SOURCE_EXAMPLES = 600
SOURCE_TEST_EXAMPLES = 150
HELD_OUT_SHARE = 0.3
LEAST_ANGLE, WIDEST_ANGLE = 40.0, 75.0
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class Share:
    """One set of examples: x [n, 64] float32 in [0, 1], y [n] int64 in 0..9."""

    x: Floats
    y: Labels


@dataclass(frozen=True, kw_only=True)
class DeviceData:
    """What one device holds: digits turned by ``angle`` degrees, and those it only measures on."""

    angle: float
    train: Share
    held_out: Share


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """The server's upright digits, for training and for testing, and every device's own."""

    source: Share
    source_test: Share
    devices: tuple[DeviceData, ...]


def _turned(x: Floats, angle: float) -> Floats:
    """Each picture turned about its centre, bilinearly."""
    pictures = x.reshape(-1, SIDE, SIDE)
    turned = rotate(pictures, angle, axes=(1, 2), reshape=False, order=1)
    return np.ascontiguousarray(turned.reshape(len(x), -1), dtype=np.float32)


def load_demo_data(devices: int, rng: np.random.Generator) -> DemoData:
    """Deal the digits out: 600 + 150 to the server, the rest in equal parts to the devices."""
    digits = load_digits()
    order = rng.permutation(len(digits.data))
    x = (digits.data[order] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    tested = SOURCE_EXAMPLES + SOURCE_TEST_EXAMPLES
    angles = np.linspace(LEAST_ANGLE, WIDEST_ANGLE, devices)
    parts = np.array_split(np.arange(tested, len(x)), devices)
    return DemoData(
        source=Share(x=x[:SOURCE_EXAMPLES], y=y[:SOURCE_EXAMPLES]),
        source_test=Share(x=x[SOURCE_EXAMPLES:tested], y=y[SOURCE_EXAMPLES:tested]),
        devices=tuple(
            _device(x[part], y[part], float(angle))
            for part, angle in zip(parts, angles, strict=True)
        ),
    )


def _device(x: Floats, y: Labels, angle: float) -> DeviceData:
    turned = _turned(x, angle)
    held_out = round(len(x) * HELD_OUT_SHARE)
    return DeviceData(
        angle=angle,
        train=Share(x=turned[held_out:], y=y[held_out:]),
        held_out=Share(x=turned[:held_out], y=y[:held_out]),
    )
