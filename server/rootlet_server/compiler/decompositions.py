"""Derivatives that the ONNX exporter does not know, written with operators that it does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

aten = torch.ops.aten


def _convolution_backward(  # noqa: PLR0917 (aten's signature)
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    _bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The input's gradient under a frozen kernel: a transposed convolution."""
    if transposed or mask[1] or mask[2]:
        raise NotImplementedError(
            "only the input of a plain convolution with a frozen kernel has a gradient here"
        )
    output_padding = []
    for d, (size, out, kernel) in enumerate(
        zip(x.shape[2:], grad.shape[2:], weight.shape[2:], strict=True)
    ):
        reached = (out - 1) * stride[d] - 2 * padding[d] + dilation[d] * (kernel - 1) + 1
        output_padding.append(size - reached)
    spread = aten.convolution(
        grad, weight, None, stride, padding, dilation, True, output_padding, groups
    )
    return spread, None, None


def _max_pool_backward(
    grad: Tensor,
    x: Tensor,
    _kernel: list[int],
    _stride: list[int],
    _padding: list[int],
    _dilation: list[int],
    _ceil: bool,
    indices: Tensor,
) -> Tensor:
    """Scatter each window's gradient to the position that was its maximum."""
    flat = torch.zeros_like(x).flatten(-2)
    return flat.scatter_add(-1, indices.flatten(-2), grad.flatten(-2)).view(x.shape)


def _unfold_backward(grad: Tensor, sizes: list[int], dim: int, size: int, step: int) -> Tensor:
    """Add every window's gradient where the window lay: ``dx[step t + k] += grad[t, k]``.

    ``step`` neighbouring offsets of all windows fill a stretch of ``dx`` without gap or overlap, so
    that there is one addition for each ``step`` offsets and nothing is scattered (torch's own
    decomposition scatters by int32, which ONNX does not have).

    Args:
        grad: [..., T, ..., size], T windows at ``dim``.
        sizes: of the input of ``unfold``.
        dim: along which windows were taken.
        size: entries of a window.
        step: from one window's start to the next one's.
    """
    dim %= len(sizes)
    stretches: list[Tensor] = []
    for first in range(0, size, step):
        part = grad[..., first : first + step]
        missing = step - part.shape[-1]
        part = aten.constant_pad_nd(part, [0, missing]) if missing else part
        part = part.movedim(-1, dim + 1).flatten(dim, dim + 1)
        after = int(sizes[dim]) - first - part.shape[dim]
        edges = [0, 0] * (len(sizes) - 1 - dim) + [first, after]
        stretches.append(aten.constant_pad_nd(part, edges))
    return sum(stretches[1:], start=stretches[0])


def unlike(sizes: Iterable[int]) -> int:
    """A batch size for tracing that equals none of ``sizes``: tracing takes equal ones for one."""
    taken = set(sizes)
    return next(n for n in itertools.count(5) if n not in taken)


def _window_counts(
    out: int, size: int, kernel: int, stride: int, padding: int, *, padded: bool
) -> list[int]:
    """How many entries each average-pooling window along one dimension divides by."""
    counts = []
    for start in range(-padding, out * stride - padding, stride):
        end = min(start + kernel, size + padding)
        counts.append(end - start if padded else min(end, size) - max(start, 0))
    return counts


def _avg_pool_backward(  # noqa: PLR0917 (aten's signature)
    grad: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    _ceil: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Spread each output's gradient evenly over its window: a transposed convolution with ones."""
    kernel, padding = kernel * (2 // len(kernel)), padding * (2 // len(padding))
    stride = (stride or kernel) * (2 // len(stride or kernel))
    if divisor is None:
        rows, columns = (
            _window_counts(
                int(grad.shape[d - 2]), int(x.shape[d - 2]), kernel[d], stride[d], padding[d],
                padded=count_include_pad,
            )
            for d in range(2)
        )  # fmt: skip
        counts = torch.tensor([[r * c for c in columns] for r in rows], dtype=grad.dtype)
        grad = grad / counts
    else:
        grad = grad / divisor
    channels = x.shape[-3]
    ones = torch.ones(channels, 1, *kernel, dtype=grad.dtype)
    spread = aten.convolution(grad, ones, None, stride, [0, 0], [1, 1], True, [0, 0], channels)
    missing = [x.shape[d] + padding[d] - spread.shape[d] for d in (-2, -1)]
    edges = [-padding[1], missing[1], -padding[0], missing[0]]
    result: Tensor = aten.constant_pad_nd(spread, edges)
    return result


def export_decompositions() -> dict[Any, Callable[..., Any]]:
    """The table for tracing a step: torch's own decompositions, and those above."""
    table = get_decompositions(
        [
            aten.threshold_backward, aten.gelu_backward, aten.elu_backward,
            aten.leaky_relu_backward, aten.hardtanh_backward, aten.hardswish_backward,
            aten.hardsigmoid_backward, aten.softplus_backward, aten.sigmoid_backward,
            aten.tanh_backward, aten.mish_backward, aten._prelu_kernel_backward,
            aten.log_sigmoid_backward, aten.native_layer_norm_backward,
            aten.native_group_norm_backward, aten._softmax_backward_data,
            aten._log_softmax_backward_data, aten.select_backward, aten.slice_backward,
        ]
    )  # fmt: skip
    return {
        **table,
        aten.convolution_backward.default: _convolution_backward,
        aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
        aten.avg_pool2d_backward.default: _avg_pool_backward,
        aten.unfold_backward.default: _unfold_backward,
    }
