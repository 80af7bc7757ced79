"""The frozen base in int8: weights per output channel, activations per row.

``y = (q(x) W_q) s scale_W`` with ``s = max|x| / 127`` over each row and ``q(x) =
round_half_even(x / s)``, stored with an offset of 128 in uint8. A row's scale depends on that row
alone: the examples of a batch stay independent (``docs/decisions/0001-row-wise-activations.md``).

The derivative passes straight through the rounding (Bengio et al. 2013): ``dx = (dy scale_W)
W_q^T``, in float or, where both ways are int8, as the same row-wise product once more.

Shapes: x [..., in], weight [in, out] int8, scale [out].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = 1e-12  # a row of zeros quantises to zeros


def quantize_weight(weight: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per channel: ``weight ~ q * scale``.

    Returns:
        q, int8 of weight's shape, in [-127, 127]; and scale, float, broadcastable against weight.
    """
    other = [d for d in range(weight.dim()) if d != channel_dim % weight.dim()]
    scale = weight.abs().amax(dim=other, keepdim=True).clamp_min(TINY) / 127
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


def product_in_floats(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product in eager torch; integers are exact in float32 up to sums of 2**24."""
    step = x.abs().amax(-1, keepdim=True).clamp_min(TINY) * (1 / 127)
    accumulated = (x / step).round() @ weight.to(x.dtype)
    return accumulated * step * scale.to(x.dtype)


_product = torch.library.custom_op("rootlet::row_int8_matmul", mutates_args=())(product_in_floats)


@_product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


@_product.register_vmap
def _(
    _info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, int]:
    if in_dims[1] is not None or in_dims[2] is not None:
        raise NotImplementedError(
            "The frozen weight is shared by all clients; only x may be stacked."
        )
    return _product(x.movedim(in_dims[0] or 0, 0), weight, scale), 0


OPERATOR = torch.ops.rootlet.row_int8_matmul


class _StraightThrough(torch.autograd.Function):
    """The product with the derivative of its float counterpart, in float or itself in int8."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, both_ways: bool) -> Tensor:
        out: Tensor = _product(x, weight, scale)
        return out

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.both_ways = inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        scaled = grad * scale.to(grad.dtype)
        if ctx.both_ways:
            back = row_int8_matmul(scaled, weight.t(), torch.ones_like(scale[:1]))
        else:
            back = scaled @ weight.to(grad.dtype).t()
        return back, None, None, None


def row_int8_matmul(x: Tensor, weight: Tensor, scale: Tensor, *, both_ways: bool = False) -> Tensor:
    """``x @ (weight * scale)`` with each row of x rounded to int8.

    Args:
        x: [..., in].
        weight: [in, out] int8.
        scale: [out], or [1] for one scale.
        both_ways: whether the incoming gradient times ``scale`` is rounded to int8 by rows too.

    Returns:
        [..., out]; its derivative with respect to x ignores the rounding of x.
    """
    out: Tensor = _StraightThrough.apply(x, weight, scale, both_ways)  # type: ignore[no-untyped-call]
    return out


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes the product: standard operators with fast uint8 x int8 kernels.

    Rows are quantised and dequantised along axis 0 of a matrix, one pass each; written as products
    with a scale they take one pass more each (``docs/decisions/0004-quantised-base.md``).
    """
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    from onnxscript import opset20 as op  # noqa: PLC0415

    def row_int8(x: Any, weight: Any, scale: Any) -> Any:
        def tensor(value: Any, dtype: Any) -> Any:
            return op.Constant(value=onnx.numpy_helper.from_array(np.asarray(value, dtype)))

        zero_point = tensor(128, np.uint8)
        largest = op.ReduceMax(op.Abs(x), tensor([-1], np.int64), keepdims=0)
        step = op.Mul(op.Max(largest, tensor(TINY, np.float32)), tensor(1 / 127, np.float32))
        matrix = len(x.shape) == 2
        if not matrix:
            step = op.Reshape(step, tensor([-1], np.int64))
        rows = x if matrix else op.Reshape(x, tensor([-1, x.shape[-1]], np.int64))
        zero_points = op.Expand(zero_point, op.Shape(step))
        quantised = op.QuantizeLinear(rows, step, zero_points, axis=0)
        accumulated = op.MatMulInteger(quantised, weight, zero_point)
        product = op.Mul(op.DequantizeLinear(accumulated, step, axis=0), scale)
        if matrix:
            return product
        return op.Reshape(product, op.Concat(op.Shape(x, end=-1), tensor([-1], np.int64), axis=0))

    return {torch.ops.rootlet.row_int8_matmul.default: row_int8}
