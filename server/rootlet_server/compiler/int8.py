"""The frozen base in int8: weights per output channel, activations per row.

``y = ((q(x) - 128) W_q) * scale_W / s`` with ``s = 127 / max|x|`` over each row and
``q(x) = round_half_even(x s) + 128`` in uint8. A row's scale depends on that row alone, so the
examples of a batch stay independent (``docs/decisions/0001-row-wise-activations.md``). Gradients
pass straight through the rounding (Bengio et al. 2013): ``dy/dx = W_q scale_W``.

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


@torch.library.custom_op("rootlet::row_int8_matmul", mutates_args=())
def _product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product in eager torch; integers are exact in float32 up to sums of 2**24."""
    inverse = 127 / x.abs().amax(-1, keepdim=True).clamp_min(TINY)
    accumulated = (x * inverse).round() @ weight.to(x.dtype)
    return accumulated * scale.to(x.dtype) / inverse


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


class _StraightThrough(torch.autograd.Function):
    """The product with the derivative of its float counterpart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = _product(x, weight, scale)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (grad * scale.to(grad.dtype)) @ weight.to(grad.dtype).t(), None, None


def row_int8_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """``x @ (weight * scale)`` with each row of x rounded to int8.

    Args:
        x: [..., in].
        weight: [in, out] int8.
        scale: [out].

    Returns:
        [..., out]; its derivative with respect to x ignores the rounding.
    """
    out: Tensor = _StraightThrough.apply(x, weight, scale)  # type: ignore[no-untyped-call]
    return out


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the exporter writes the product: standard operators with fast uint8 x int8 kernels."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    from onnxscript import opset20 as op  # noqa: PLC0415

    def row_int8(x: Any, weight: Any, scale: Any) -> Any:
        def tensor(value: Any, dtype: Any) -> Any:
            return op.Constant(value=onnx.numpy_helper.from_array(np.asarray(value, dtype)))

        zero_point = tensor(128, np.uint8)
        largest = op.ReduceMax(op.Abs(x), tensor([-1], np.int64), keepdims=1)
        inverse = op.Div(tensor(127, np.float32), op.Max(largest, tensor(TINY, np.float32)))
        quantised = op.QuantizeLinear(op.Mul(x, inverse), tensor(1, np.float32), zero_point)
        accumulated = op.Cast(op.MatMulInteger(quantised, weight, zero_point), to=1)
        return op.Div(op.Mul(accumulated, scale), inverse)

    return {torch.ops.rootlet.row_int8_matmul.default: row_int8}
