"""The ranges of convolutions' inputs and outputs, measured on the server over calibration data.

Which convolutions run in integers is decided here too: plain ones of at least 16 channels in and
out. On fewer channels and on depthwise ones there is little work in the products to set against
quantising their inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.conv_int8 import LEVELS, conv_geometry
from rootlet_server.compiler.interpret import CONVOLUTIONS, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from rootlet_server.compiler.trace import Program

CHUNK = 32
SMALLEST_CHANNELS = 16
HEADROOM = 1.1  # adapted activations go somewhat beyond those of the calibration data
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True)
class ConvRanges:
    """Smallest and largest value of a convolution's input and of its output, zero included."""

    inputs: tuple[float, float]
    outputs: tuple[float, float]

    def widened(self, x: Tensor, y: Tensor) -> ConvRanges:
        """The ranges that also hold these values."""
        return ConvRanges(_union(self.inputs, x), _union(self.outputs, y))


def _union(bounds: tuple[float, float], t: Tensor) -> tuple[float, float]:
    return min(bounds[0], float(t.min())), max(bounds[1], float(t.max()))


def conv_ranges(program: Program, x: Tensor) -> dict[str, ConvRanges]:
    """Weight name -> ranges over the calibration data, for every convolution worth its integers.

    A layer that is called twice has one pair of ranges, which hold both calls.
    """
    ranges: dict[str, ConvRanges] = {}

    def observe(weight: str, args: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        y = compute()
        known = ranges.get(weight, ConvRanges((0.0, 0.0), (0.0, 0.0)))
        ranges[weight] = known.widened(args[0], y)
        return y

    wrap = {
        node.name: partial(observe, weight)
        for node in program.graph.nodes
        if node.target in CONVOLUTIONS
        and (weight := program.parameter(node.args[1])) is not None
        and _pays(node, program.tensors[weight])
    }
    if wrap:
        with torch.no_grad():
            for part in torch.split(x, CHUNK):
                run(program, program.tensors, part, wrap=wrap)
    return ranges


def _pays(node: fx.Node, weight: Tensor) -> bool:
    geometry = conv_geometry(node.args, weight.shape)
    if geometry is None or geometry[3] != 1 or (len(node.args) > 2 and _computed(node.args[2])):
        return False
    return min(weight.shape[:2]) >= SMALLEST_CHANNELS


def _computed(bias: Any) -> bool:
    return bias is not None and bias.op != "placeholder"


def _grid(bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = (HEADROOM * bound for bound in bounds)
    scale = max(high - low, SMALLEST_RANGE) / LEVELS
    zero = min(max(round(-low / scale), 0), LEVELS)
    return torch.tensor(scale), torch.tensor(zero, dtype=torch.uint8)


def stored_ranges(
    name: str, scale: Tensor, ranges: ConvRanges, bias: Tensor | None
) -> dict[str, Tensor]:
    """What an integer convolution needs beside ``<name>:conv.q`` and its scale [out, 1, ...]."""
    x_scale, x_zero = _grid(ranges.inputs)
    y_scale, y_zero = _grid(ranges.outputs)
    product_scale = (x_scale * scale.flatten()).contiguous()
    bias = torch.zeros_like(product_scale) if bias is None else bias
    return {
        f"{name}:conv.x_scale": x_scale,
        f"{name}:conv.x_zero": x_zero,
        f"{name}:conv.y_scale": y_scale,
        f"{name}:conv.y_zero": y_zero,
        f"{name}:conv.bias": (bias / product_scale)
        .round()
        .clamp(-(2**31), 2**31 - 128)
        .to(torch.int32),
        f"{name}:conv.bias_scale": product_scale,
    }
