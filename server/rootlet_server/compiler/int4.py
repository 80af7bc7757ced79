"""Linear weights in int4: a scale for every 32 inputs of each output; activations stay in float.

``W[i, o] = q[i, o] scale[i // 32, o]`` with q in [-8, 7], two to a byte (the first in the low
half), which is ONNX's INT4 in row-major order. The scale of a block is the one of a few candidates
that reproduces the block best in the mean square.

The export writes DequantizeLinear by blocks (opset 21) and MatMul, standard operators both;
onnxruntime fuses them into one product that reads four bits a weight. Its accuracy level 0, which
rootlet's engine asks for, computes exactly this; left to its default it also rounds activations.

Shapes: weight [in, out], scale [in / 32, out], packed [in out / 2] uint8.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from rootlet_server.compiler.int8 import TINY

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 32
LOWEST, HIGHEST = -8, 7
CANDIDATES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the largest magnitude over 7
DOMAIN, OPERATOR = "rootlet", "Int4Weight"
OPSET = 21


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(packed, scale) of a weight whose number of inputs is a multiple of 32."""
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    largest = blocks.abs().amax(1, keepdim=True).clamp_min(TINY) / HIGHEST
    best = torch.full_like(largest, torch.inf)
    scale = largest
    for candidate in CANDIDATES:
        tried = largest * candidate
        error = (_rounded(blocks, tried) * tried - blocks).square().sum(1, keepdim=True)
        scale = torch.where(error < best, tried, scale)
        best = torch.minimum(error, best)
    q = _rounded(blocks, scale).flatten().to(torch.int8).view(torch.uint8) & 15
    return q[0::2] | (q[1::2] << 4), scale.squeeze(1)


def _rounded(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / scale).round().clamp(LOWEST, HIGHEST)


@torch.library.custom_op("rootlet::int4_weight", mutates_args=())
def int4_weight(packed: Tensor, scale: Tensor) -> Tensor:
    """The weight [in, out] in floating point."""
    halves = torch.stack([packed & 15, packed >> 4], 1).flatten()
    q = ((halves ^ 8).to(scale.dtype) - 8).view(len(scale), BLOCK, scale.shape[1])
    return (q * scale.unsqueeze(1)).flatten(0, 1)


@int4_weight.register_fake
def _(packed: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty((len(scale) * BLOCK, scale.shape[1]))


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """A stand-in of our own, which ``write_int4`` turns into the standard operator."""
    from onnxscript.values import Opset  # noqa: PLC0415

    _register_stand_in()
    ours = Opset(DOMAIN, 1)

    def int4(packed: Any, scale: Any) -> Any:
        return ours.Int4Weight(packed, scale)

    return {torch.ops.rootlet.int4_weight.default: int4}


@cache
def _register_stand_in() -> None:
    """The exporter writes only operators that onnx has a schema of."""
    schema, tensor = onnx.defs.OpSchema, onnx.defs.OpSchema.FormalParameter
    onnx.defs.register_schema(
        schema(
            OPERATOR,
            DOMAIN,
            1,
            inputs=[tensor("packed", "tensor(uint8)"), tensor("scale", "tensor(float)")],
            outputs=[tensor("weight", "tensor(float)")],
        )
    )


def write_int4(model: onnx.ModelProto) -> None:
    """Turn the stand-ins into DequantizeLinear on INT4 tensors; the model becomes opset 21.

    Opset 21 differs from 20 in the data types that operators take, and in GroupNormalization.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type == OPERATOR]
    for node in found:
        packed, scale = (tensors[name] for name in node.input)
        if packed.data_type != onnx.TensorProto.INT4:
            raw = onnx.numpy_helper.to_array(packed).astype(np.uint8).tobytes()
            shape = (scale.dims[0] * BLOCK, scale.dims[1])
            packed.CopyFrom(
                onnx.TensorProto(
                    name=packed.name, data_type=onnx.TensorProto.INT4, dims=shape, raw_data=raw
                )
            )
        node.op_type, node.domain = "DequantizeLinear", ""
        node.attribute.append(onnx.helper.make_attribute("axis", 0))
        node.attribute.append(onnx.helper.make_attribute("block_size", BLOCK))
    if found:
        for opset in model.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = OPSET
        kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(kept)
