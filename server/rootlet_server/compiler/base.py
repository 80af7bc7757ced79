"""How the frozen base is stored: linear weights transposed; int8, int4 or float32 by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.conv_ranges import stored_ranges
from rootlet_server.compiler.int4 import BLOCK, quantize_int4
from rootlet_server.compiler.int8 import quantize_weight
from rootlet_server.compiler.interpret import CONVOLUTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.config import Backward, LayerDtype
    from rootlet_server.compiler.conv_ranges import ConvRanges
    from rootlet_server.compiler.trace import Program

aten = torch.ops.aten


def layers(program: Program) -> dict[str, set[str]]:
    """Tensor name -> the kinds of layer that read it; ``plain`` for any other use."""
    uses: dict[str, set[str]] = {}
    for node in program.graph.nodes:
        for position, arg in enumerate(node.args):
            name = program.parameter(arg)
            if name is None:
                continue
            kind = "plain"
            if node.target is aten.linear.default and position == 1:
                kind = "linear"
            elif node.target in CONVOLUTIONS and position == 1:
                kind = "conv"
            elif node.target is aten.embedding.default and position == 0:
                kind = "embedding"
            uses.setdefault(name, set()).add(kind)
        for value in node.kwargs.values():
            if (name := program.parameter(value)) is not None:
                uses.setdefault(name, set()).add("plain")
    return uses


def freeze(
    program: Program,
    base_dtype: LayerDtype | Mapping[str, LayerDtype],
    *,
    without: set[str],
    backward: Backward = "float32",
    ranges: Mapping[str, ConvRanges] | None = None,
) -> dict[str, Tensor]:
    """The frozen tensors, by the names that ``interpret.base_product`` reads.

    | layer | float32 | int8 | int4 |
    |---|---|---|---|
    | linear | ``:linear`` [in, out] | ``:linear.q``, ``.scale`` [out] | ``:linear.int4``, scale |
    | convolution | as it is | ``:conv.q``, ``.scale``, and ``stored_ranges`` | as in int8 |
    | embedding | as it is | ``:embedding.q``, ``.scale`` for each row | as in int8 |

    Args:
        program: the traced model.
        base_dtype: of all layers, or by tensor name; a layer that is not named is in float32.
        without: tensors that are not frozen (the head).
        backward: ``int8`` stores int8 linear layers as ``:linear.both``, whose derivative is an
            int8 product too.
        ranges: of the inputs and outputs of convolutions, by tensor name; those of int8
            convolutions that have one run in integers.
    """
    frozen: dict[str, Tensor] = {}
    for name, kinds in layers(program).items():
        if name in without:
            continue
        dtype = base_dtype if isinstance(base_dtype, str) else base_dtype.get(name, "float32")
        for kind in sorted(kinds):
            stored = _stored(name, program.tensors[name], kind, dtype, backward)
            if kind == "conv" and ranges and name in ranges and dtype != "float32":
                scale, bias = stored[f"{name}:conv.scale"], _conv_bias(program, name)
                stored |= stored_ranges(name, scale, ranges[name], bias)
            frozen |= stored
    return frozen


def _conv_bias(program: Program, weight: str) -> Tensor | None:
    for node in program.graph.nodes:
        if node.target in CONVOLUTIONS and program.parameter(node.args[1]) == weight:
            bias = program.parameter(node.args[2]) if len(node.args) > 2 else None
            return None if bias is None else program.tensors[bias]
    return None


def _stored(
    name: str, tensor: Tensor, kind: str, dtype: LayerDtype, backward: Backward
) -> dict[str, Tensor]:
    if kind == "plain" or dtype == "float32":
        return {f"{name}:linear": tensor.t().contiguous()} if kind == "linear" else {name: tensor}
    if kind == "linear":
        weight = tensor.t().contiguous()
        if dtype == "int4" and len(weight) % BLOCK == 0:
            packed, scale = quantize_int4(weight)
            return {f"{name}:linear.int4": packed, f"{name}:linear.scale": scale}
        q, scale = quantize_weight(weight, channel_dim=1)
        key = "both" if backward == "int8" else "q"
        return {f"{name}:linear.{key}": q, f"{name}:linear.scale": scale.flatten()}
    q, scale = quantize_weight(tensor, channel_dim=0)
    return {f"{name}:{kind}.q": q, f"{name}:{kind}.scale": scale}
