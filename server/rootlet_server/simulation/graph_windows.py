"""ONNX operators that slide a window: convolutions and pools, in torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Attributes = Mapping[str, Any]


def _windows(a: Attributes, spatial: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads; what torch pads on both sides alike."""
    strides = list(a.get("strides", [1] * spatial))
    dilations = list(a.get("dilations", [1] * spatial))
    pads = list(a.get("pads", [0] * 2 * spatial))
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[:spatial] != pads[spatial:]:
        raise NotImplementedError("windows that are padded on one side more than on the other")
    return strides, dilations, pads[:spatial]


def convolve(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv."""
    spatial = x.dim() - 2
    strides, dilations, pads = _windows(a, spatial)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    result: Tensor = function(x, weight, bias, strides, pads, dilations, a.get("group", 1))
    return result


def convolve_integer(
    a: Attributes, x: Tensor, w: Tensor, zero_x: Tensor | None = None, zero_w: Tensor | None = None
) -> Tensor:
    """ConvInteger; float32 holds the sums exactly below 2**24."""
    x = x.float() if zero_x is None else x.float() - zero_x.float()
    w = w.float() if zero_w is None else w.float() - zero_w.float()
    return convolve(a, x, w)


def convolve_transposed(
    a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """ConvTranspose."""
    spatial = x.dim() - 2
    strides, dilations, pads = _windows(a, spatial)
    more = list(a.get("output_padding", [0] * spatial))
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    result: Tensor = function(x, weight, bias, strides, pads, more, a.get("group", 1), dilations)
    return result


def max_pool(a: Attributes, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest values, and where they are in the flattened x, as ONNX counts."""
    spatial = x.dim() - 2
    strides, dilations, pads = _windows(a, spatial)
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
    values, places = function(
        x, a["kernel_shape"], strides, pads, dilations, bool(a.get("ceil_mode", 0)), True
    )
    planes = torch.arange(math.prod(x.shape[:2])) * math.prod(x.shape[2:])
    return values, places + planes.reshape(*x.shape[:2], *[1] * spatial)


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    """AveragePool."""
    spatial = x.dim() - 2
    strides, _, pads = _windows(a, spatial)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[spatial - 1]
    result: Tensor = function(
        x,
        a["kernel_shape"],
        strides,
        pads,
        bool(a.get("ceil_mode", 0)),
        bool(a.get("count_include_pad", 0)),
    )
    return result
