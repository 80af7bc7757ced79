"""The aten operators that a model may use, and how the interpreter computes the few that need care.

``SUPPORTED`` is the whole vocabulary; ``DIAGONAL`` are the operators whose output at a position
depends on their first input at that position alone, so that their Jacobian is diagonal and one
forward-mode derivative gives all of it. ``REWRITES`` are equal formulas for operators whose
derivative or shape handling does not export or stack.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


def _overloads(*names: str) -> frozenset[Any]:
    found = []
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(aten, packet)
        found += [getattr(op, overload)] if overload else [getattr(op, o) for o in op.overloads()]
    return frozenset(found)


ACTIVATIONS = _overloads(
    "relu.default", "relu6.default", "leaky_relu.default", "elu.default", "selu.default",
    "celu.default", "gelu.default", "silu.default", "mish.default", "tanh.default",
    "sigmoid.default", "hardtanh.default", "hardsigmoid.default", "hardswish.default",
    "softplus.default", "log_sigmoid.default", "prelu.default", "clamp.default",
    "clamp_min.default", "clamp_max.default",
)  # fmt: skip
POINTWISE = _overloads(
    "add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "mul.Tensor",
    "mul.Scalar", "div.Tensor", "div.Scalar", "neg.default", "pow.Tensor_Scalar", "square.default",
    "exp.default", "log.default", "log1p.default", "sqrt.default", "rsqrt.default", "abs.default",
    "erf.default", "sin.default", "cos.default", "reciprocal.default",
)  # fmt: skip
IDENTITY = _overloads(
    "clone.default", "contiguous.default", "dropout.default", "feature_dropout.default",
    "alias.default", "detach.default", "detach_.default", "lift_fresh_copy.default",
    "lift_fresh.default",
)  # fmt: skip
BATCH_NORM = aten._native_batch_norm_legit_no_training.default
DIAGONAL = ACTIVATIONS | POINTWISE | IDENTITY | {BATCH_NORM}
SHAPE = _overloads(
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints",
    "unflatten.int", "transpose.int", "permute.default", "t.default", "unsqueeze.default",
    "squeeze.dim", "squeeze.dims", "squeeze.default", "expand.default", "select.int",
    "slice.Tensor", "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int",
    "cat.default", "stack.default", "movedim.int", "swapaxes.default", "constant_pad_nd.default",
    "pad.default", "roll.default", "flip.default", "repeat.default", "narrow.default",
    "index_select.default", "pixel_shuffle.default", "unfold.default", "broadcast_to.default",
    "expand_as.default",
)  # fmt: skip
PRODUCTS = _overloads(
    "linear.default", "conv1d.default", "conv2d.default", "conv1d.padding", "conv2d.padding",
    "matmul.default", "bmm.default", "mm.default", "addmm.default", "baddbmm.default",
    "einsum.default", "embedding.default", "scaled_dot_product_attention.default",
)  # fmt: skip
NORMS_AND_POOLS = _overloads(
    "layer_norm.default", "group_norm.default", "rms_norm.default", "softmax.int",
    "log_softmax.int", "_softmax.default", "mean.dim", "mean.default", "sum.dim_IntList",
    "sum.default", "amax.default", "amin.default", "max_pool1d.default", "max_pool2d.default",
    "avg_pool1d.default", "avg_pool2d.default", "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default", "norm.ScalarOpt_dim", "linalg_vector_norm.default",
    "maximum.default", "minimum.default", "var.correction", "cumsum.default",
)  # fmt: skip
MASKS_AND_CONSTANTS = _overloads(
    "arange.default", "arange.start", "arange.start_step", "ones.default", "zeros.default",
    "full.default", "ones_like.default", "zeros_like.default", "full_like.default",
    "scalar_tensor.default", "triu.default", "tril.default", "where.self", "where.ScalarSelf",
    "where.ScalarOther", "masked_fill.Scalar", "masked_fill.Tensor", "eq.Scalar", "eq.Tensor",
    "ne.Scalar", "ne.Tensor", "lt.Scalar", "lt.Tensor", "le.Scalar", "le.Tensor", "gt.Scalar",
    "gt.Tensor", "ge.Scalar", "ge.Tensor", "logical_not.default", "logical_and.default",
    "logical_or.default", "bitwise_not.default", "bitwise_and.Tensor", "bitwise_or.Tensor",
    "_to_copy.default", "to.dtype", "type_as.default", "sym_size.int",
    "_assert_tensor_metadata.default", "_assert_scalar.default", "_assert_async.msg",
    "sym_constrain_range_for_size.default",
)  # fmt: skip
SUPPORTED = DIAGONAL | SHAPE | PRODUCTS | NORMS_AND_POOLS | MASKS_AND_CONSTANTS

_REASONS = {
    "lstm": ("an LSTM is recurrent", "Use convolutions or attention over time instead."),
    "gru": ("a GRU is recurrent", "Use convolutions or attention over time instead."),
    "_native_batch_norm_legit_functional": (
        "batch normalisation in training mode couples the examples of a batch",
        "Keep it in eval mode (do not override train()), or use GroupNorm.",
    ),
    "conv_transpose": (
        "transposed convolutions are not supported",
        "Use a Conv2d head or pool instead.",
    ),
}


def reason_for(target: Any) -> tuple[str, str]:
    """Why an operator is refused, and what to do about it."""
    name = getattr(target, "__name__", str(target)).split(".")[0]
    for key, answer in _REASONS.items():
        if name.startswith(key):
            return answer
    return (
        f"the operator {target} is not one that the compiler knows",
        "docs/compiler.md lists the supported layers; replace it by one of them.",
    )


def _attention(  # noqa: PLR0917 (aten's signature)
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout or enable_gqa:
        raise NotImplementedError("attention with dropout or grouped queries")
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if causal:
        keep = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        scores = scores + torch.zeros_like(keep, dtype=q.dtype).masked_fill(~keep, -1e9)
    if mask is not None:
        bias = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e9)
            if mask.dtype == torch.bool
            else mask
        )
        scores = scores + bias.to(q.dtype)
    return scores.softmax(-1) @ v


def _batch_norm(  # noqa: PLR0917 (aten's signature)
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor]:
    shape = (-1, *([1] * (x.dim() - 2)))
    factor = (var + eps).rsqrt() * (1 if weight is None else weight)
    offset = -mean * factor + (0 if bias is None else bias)
    return (x * factor.view(shape) + offset.view(shape),)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    if weight.numel() > 1:
        weight = weight.view(-1, *([1] * (x.dim() - 2)))
    return torch.where(x > 0, x, weight * x)


def _adaptive_average(x: Tensor, out: list[int], dims: int) -> Tensor:
    """Adaptive average pooling as a product with one matrix of window means per dimension."""
    for d, windows in zip(range(-dims, 0), out * (dims // len(out)), strict=True):
        size = int(x.shape[d])
        if windows == 1:
            x = x.mean(d, keepdim=True)
        elif windows != size:
            mean = torch.zeros(size, windows, dtype=x.dtype)
            for i in range(windows):
                start, end = i * size // windows, -(-(i + 1) * size // windows)
                mean[start:end, i] = 1 / (end - start)
            x = (x.movedim(d, -1) @ mean).movedim(-1, d)
    return x


def _identity(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def cast(x: Tensor, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Tensor:
    """The tensor as ``dtype``, unless that is None."""
    return x if dtype is None else x.to(dtype)


REWRITES: dict[Any, Callable[..., Any]] = {
    aten.silu.default: lambda x: x * x.sigmoid(),
    # A clone is skipped, so what follows it may not be contiguous.
    aten.mish.default: lambda x: x * torch.nn.functional.softplus(x).tanh(),
    aten.log_sigmoid.default: lambda x: -torch.nn.functional.softplus(-x),
    aten.prelu.default: _prelu,
    aten.view.default: torch.reshape,
    aten._unsafe_view.default: torch.reshape,
    aten.scaled_dot_product_attention.default: _attention,
    BATCH_NORM: _batch_norm,
    aten._to_copy.default: cast,
    aten.to.dtype: cast,
    aten.adaptive_avg_pool1d.default: lambda x, out: _adaptive_average(x, out, 1),
    aten.adaptive_avg_pool2d.default: lambda x, out: _adaptive_average(x, out, 2),
    aten.sym_size.int: lambda x, dim: x.shape[dim],
    aten._assert_tensor_metadata.default: lambda *_, **__: None,
    aten._assert_scalar.default: lambda *_, **__: None,
    aten._assert_async.msg: lambda *_, **__: None,
    aten.sym_constrain_range_for_size.default: lambda *_, **__: None,
    **dict.fromkeys(IDENTITY, _identity),
}
