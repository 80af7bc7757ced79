"""Convolutions in integers: int8 weights per output channel, activations by fixed ranges.

With x in uint8 by a scale s_x and a zero point z_x, and the output by s_y and z_y,

    q(x) = clip(round(x / s_x) + z_x, 0, 255)
    y = s_y (clip(round((conv(q(x) - z_x, W_q) + b_q) s_x s_W / s_y) + z_y, 0, 255) - z_y)

Scales and zero points are measured once, over calibration data, and hold for a whole tensor: no
example changes another's rounding. Values outside the range are clipped to it. The export writes
QuantizeLinear and DequantizeLinear around Conv, which onnxruntime fuses into one QLinearConv and
any other runtime computes in float to the same integers. Gradients pass straight through.

What a training step gains by it is printed by ``tests/benchmarks/bench_quantised_base.py``
(``docs/decisions/0004-quantised-base.md``). Convolutions of few channels and depthwise ones stay in
float (``conv_ranges``).

Shapes: x [N, in, ...], weight [out, in / groups, ...] int8, bias [out] int32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

aten = torch.ops.aten
LEVELS = 255


def conv_geometry(
    args: tuple[Any, ...], weight_shape: torch.Size
) -> tuple[list[int], list[int], list[int], int] | None:
    """(stride, padding, dilation, groups); None where padding is not the same on both sides."""
    dims = len(weight_shape) - 2
    rest: list[Any] = [*args[3:], *[1, 0, 1, 1][len(args[3:]) :]]
    stride: Any
    padding: Any
    dilation: Any
    stride, padding, dilation = (
        value if isinstance(value, str) else _each(value, dims) for value in rest[:3]
    )
    if padding == "valid":
        padding = [0] * dims
    elif padding == "same":
        total = [d * (size - 1) for d, size in zip(dilation, weight_shape[2:], strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    return stride, padding, dilation, int(rest[3])


def _each(value: Any, dims: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in values] * (dims // len(values))


def convolution_in_floats(  # noqa: PLR0917 (an operator takes its tensors one by one)
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, bias_scale: Tensor,
    x_scale: Tensor, x_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The convolution in eager torch; integers are exact in float32 up to 2**24."""
    x_zero, y_zero = x_zero.to(x.dtype), y_zero.to(x.dtype)
    q = ((x / x_scale).round() + x_zero).clamp(0, LEVELS) - x_zero
    accumulated = aten.convolution(
        q, weight.to(x.dtype), bias.to(x.dtype), stride, padding, dilation, False,
        [0] * len(stride), groups,
    )  # fmt: skip
    factor = (bias_scale / y_scale).to(x.dtype).view(-1, *[1] * (x.dim() - 2))
    rounded = (accumulated * factor).round() + y_zero
    out: Tensor = (rounded.clamp(0, LEVELS) - y_zero) * y_scale
    return out


_product = torch.library.custom_op("rootlet::static_int8_conv", mutates_args=())(
    convolution_in_floats
)


@_product.register_fake
def _(  # noqa: PLR0917
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, bias_scale: Tensor,
    x_scale: Tensor, x_zero: Tensor, y_scale: Tensor, y_zero: Tensor,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    kernel = weight.shape[2:]
    sizes = [
        (x.shape[d + 2] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(len(kernel))
    ]
    return x.new_empty((x.shape[0], weight.shape[0], *sizes))


@_product.register_vmap
def _(_info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    if any(dim is not None for dim in in_dims[1:9]):
        raise NotImplementedError("The frozen weight is shared by all clients; only x is stacked.")
    x = x.movedim(in_dims[0] or 0, 0)
    out: Tensor = _product(x.flatten(0, 1), *rest)
    return out.unflatten(0, x.shape[:2]), 0


OPERATOR = torch.ops.rootlet.static_int8_conv


class _StraightThrough(torch.autograd.Function):
    """The convolution with the derivative of its float counterpart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *rest: Any) -> Tensor:
        out: Tensor = _product(x, *rest)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.geometry = inputs[9:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        kernel = weight.to(grad.dtype) * scale.to(grad.dtype)
        grad_x = aten.convolution_backward(
            grad, x, kernel, None, stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )[0]  # fmt: skip
        return (grad_x, *[None] * 12)


def static_int8_conv(
    frozen: Mapping[str, Tensor], name: str, x: Tensor, geometry: tuple[Any, ...]
) -> Tensor:
    """The convolution of x with the weight ``name``; its derivative ignores the rounding.

    Args:
        frozen: holds the tensors of ``conv_ranges.stored_ranges`` and the weight.
        name: of the weight.
        x: [N, in, ...].
        geometry: of ``conv_geometry``.
    """
    keys = ("q", "scale", "bias", "bias_scale", "x_scale", "x_zero", "y_scale", "y_zero")
    tensors = [frozen[f"{name}:conv.{key}"] for key in keys]
    out: Tensor = _StraightThrough.apply(x, *tensors, *geometry)  # type: ignore[no-untyped-call]
    return out


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes the convolution: Conv between dequantised tensors."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    from onnxscript import opset20 as op  # noqa: PLC0415

    def tensor(value: Any) -> Any:
        return op.Constant(value=onnx.numpy_helper.from_array(np.asarray(value, np.int64)))

    def static_int8(  # noqa: PLR0917 (the operator's signature)
        x: Any, weight: Any, scale: Any, bias: Any, bias_scale: Any,
        x_scale: Any, x_zero: Any, y_scale: Any, y_zero: Any,
        stride: Any, padding: Any, dilation: Any, groups: Any,
    ) -> Any:  # fmt: skip
        quantised = op.QuantizeLinear(x, x_scale, x_zero)
        columns = op.Reshape(scale, tensor([-1]))
        y = op.Conv(
            op.DequantizeLinear(quantised, x_scale, x_zero),
            op.DequantizeLinear(weight, columns, axis=0),
            op.DequantizeLinear(bias, bias_scale, axis=0),
            strides=list(stride),
            pads=[*padding, *padding],
            dilations=list(dilation),
            group=groups,
        )
        return op.DequantizeLinear(op.QuantizeLinear(y, y_scale, y_zero), y_scale, y_zero)

    return {torch.ops.rootlet.static_int8_conv.default: static_int8}
