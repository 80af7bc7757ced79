"""ONNX operators in torch: what the compiler's graphs are made of, one function each.

A function takes a node's attributes and its inputs, None where an input is left out. Sizes, axes
and shapes are numpy integers, known before anything is computed: under ``torch.func.vmap`` a shape
is that of one client, and no operator may look at a tensor's values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rootlet_server.simulation import graph_shapes as shapes
from rootlet_server.simulation import graph_windows as windows
from rootlet_server.simulation.graph_shapes import SIZES, as_tensor, axes_of, ints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Attributes = Mapping[str, Any]
    Operator = Callable[..., Any]

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    11: torch.float64,
}  # fmt: skip


def _elementwise(torch_function: Operator, numpy_function: Operator) -> Operator:
    """Torch for tensors; numpy where every input is a size."""

    def operator(_: Attributes, *inputs: Any) -> Any:
        if all(isinstance(each, SIZES) for each in inputs):
            return np.asarray(numpy_function(*inputs))
        return torch_function(*(as_tensor(each) for each in inputs))

    return operator


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _fold(function: Operator) -> Operator:
    def operator(_: Attributes, first: Tensor, *rest: Tensor) -> Tensor:
        for each in rest:
            first = function(first, each)
        return first

    return operator


def _reduce(function: Operator) -> Operator:
    def operator(a: Attributes, x: Tensor, axes: Any = None) -> Tensor:
        chosen = axes_of(a, axes)
        if chosen is None:
            if a.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.dim()))
        result: Tensor = function(x, dim=chosen, keepdim=bool(a.get("keepdims", 1)))
        return result

    return operator


def _reduce_log_sum_exp(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return x.logsumexp(dim, keepdim)


def _cast(a: Attributes, x: Any) -> Any:
    dtype = DTYPES[a["to"]]
    if isinstance(x, SIZES) and dtype == torch.int64:
        return x.astype(np.int64)
    return as_tensor(x).to(dtype)


def _shape(a: Attributes, x: Any) -> Any:
    return np.array(x.shape, np.int64)[a.get("start", 0) : a.get("end")]


def _range(_: Attributes, start: Any, limit: Any, delta: Any) -> Any:
    return np.arange(int(start), int(limit), int(delta))


def _gemm(a: Attributes, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.t() if a.get("transA", 0) else x
    y = y.t() if a.get("transB", 0) else y
    product = x @ y
    if a.get("alpha", 1.0) != 1.0:
        product = product * a["alpha"]
    if bias is None:
        return product
    return product + (bias if a.get("beta", 1.0) == 1.0 else a["beta"] * bias)


def _matmul_integer(
    _: Attributes, x: Tensor, y: Tensor, zero_x: Tensor | None = None, zero_y: Tensor | None = None
) -> Tensor:
    """Sums of int8 products; float32 holds them exactly below 2**24."""
    left, right = x.float(), y.float()
    left = left if zero_x is None else left - zero_x.float()
    right = right if zero_y is None else right - zero_y.float()
    return left @ right


def _along(scale: Tensor, axis: int, rank: int) -> Tensor:
    if scale.dim() == 0 or scale.numel() == 1:
        return scale
    return scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Rounded half to even and saturated; kept as float32, which holds every int8 exactly."""
    axis = a.get("axis", 1)
    dtype = torch.uint8 if zero is None else zero.dtype
    offset = 0.0 if zero is None else _along(zero, axis, x.dim()).float()
    bounds = torch.iinfo(dtype)
    return ((x / _along(scale, axis, x.dim())).round() + offset).clamp(bounds.min, bounds.max)


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    axis = a.get("axis", 1)
    shifted = x.float() if zero is None else x.float() - _along(zero, axis, x.dim()).float()
    return shifted * _along(scale, axis, x.dim())


def _pad(a: Attributes, x: Tensor, pads: Any, value: Any = None, axes: Any = None) -> Tensor:
    if a.get("mode", "constant") != "constant":
        raise NotImplementedError("Pad in another mode than constant")
    amounts, rank = ints(pads), x.dim()
    chosen = list(range(rank)) if axes is None else [each % rank for each in ints(axes)]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[i], amounts[i + len(chosen)]
    flat = [size for axis in range(rank)[::-1] for size in (before[axis], after[axis])]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _layer_norm(
    a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised values, and mean and 1 / deviation for a backward pass."""
    dims = list(range(a.get("axis", -1) % x.dim(), x.dim()))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    inverse = (centred.square().mean(dims, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt()
    scaled = centred * inverse * scale
    return scaled if bias is None else scaled + bias, mean, inverse


def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    dims = list(range(2, x.dim()))
    shape = [-1, *[1] * len(dims)]
    centred = x - x.mean(dims, keepdim=True)
    inverse = (centred.square().mean(dims, keepdim=True) + a.get("epsilon", 1e-5)).rsqrt()
    normalised: Tensor = centred * inverse * scale.reshape(shape) + bias.reshape(shape)
    return normalised


def _arg_max(a: Attributes, x: Tensor) -> Tensor:
    return x.argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))


def _trilu(a: Attributes, x: Tensor, k: Any = None) -> Tensor:
    function: Any = torch.triu if a.get("upper", 1) else torch.tril
    result: Tensor = function(x, 0 if k is None else int(k))
    return result


def _clip(_: Attributes, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    if low is not None:
        x = x.maximum(as_tensor(low).to(x.dtype))
    return x if high is None else x.minimum(as_tensor(high).to(x.dtype))


def _one_hot(a: Attributes, index: Tensor, depth: Any, values: Tensor) -> Tensor:
    classes = torch.arange(int(depth))
    if a.get("axis", -1) != -1:
        raise NotImplementedError("OneHot along another axis than the last")
    return torch.where(index.unsqueeze(-1) == classes, values[1], values[0])


def _unary(function: Operator) -> Operator:
    return lambda _, x: function(x)


OPERATORS: dict[str, Operator] = {
    "Abs": _elementwise(torch.abs, np.abs),
    "Add": _elementwise(torch.add, np.add),
    "And": _fold(torch.logical_and),
    "ArgMax": _arg_max,
    "AveragePool": windows.average_pool,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Clip": _clip,
    "Concat": shapes.concat,
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": windows.convolve,
    "ConvInteger": windows.convolve_integer,
    "ConvTranspose": windows.convolve_transposed,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(_divide, np.floor_divide),
    "Einsum": lambda a, *x: torch.einsum(a["equation"], *x),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Equal": _elementwise(torch.eq, np.equal),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": shapes.expand,
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
    "Floor": _unary(torch.floor),
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(list(range(2, x.dim())), keepdim=True),
    "Greater": _elementwise(torch.gt, np.greater),
    "GreaterOrEqual": _elementwise(torch.ge, np.greater_equal),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda _, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Less": _elementwise(torch.lt, np.less),
    "LessOrEqual": _elementwise(torch.le, np.less_equal),
    "Log": _unary(torch.log),
    "LogSoftmax": lambda a, x: x.log_softmax(a.get("axis", -1)),
    "MatMul": lambda _, x, y: x @ y,
    "MatMulInteger": _matmul_integer,
    "Max": _fold(torch.maximum),
    "MaxPool": windows.max_pool,
    "Min": _fold(torch.minimum),
    "Mul": _elementwise(torch.mul, np.multiply),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "OneHot": _one_hot,
    "Or": _fold(torch.logical_or),
    "PRelu": lambda _, x, slope: torch.where(x >= 0, x, slope * x),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow, np.power),
    "QuantizeLinear": _quantize,
    "Range": _range,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim).sqrt()),
    "ReduceLogSumExp": _reduce(_reduce_log_sum_exp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim)),
    "Relu": _unary(torch.relu),
    "ReluGrad": lambda _, g, x: torch.ops.aten.threshold_backward(g, x, 0),
    "Reshape": shapes.reshape,
    "Round": _unary(torch.round),
    "ScatterElements": shapes.scatter_elements,
    "Selu": _unary(F.selu),
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Size": lambda _, x: np.array(math.prod(x.shape), np.int64),
    "Slice": shapes.window,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(F.softsign),
    "Split": shapes.split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": shapes.squeeze,
    "Sub": _elementwise(torch.sub, np.subtract),
    "Sum": _fold(torch.add),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda _, x, repeats: as_tensor(x).repeat(ints(repeats)),
    "Transpose": shapes.transpose,
    "Trilu": _trilu,
    "Unsqueeze": shapes.unsqueeze,
    "Where": lambda _, c, x, y: torch.where(as_tensor(c).bool(), as_tensor(x), as_tensor(y)),
}
