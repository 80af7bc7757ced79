"""How the frozen base is stored: linear weights transposed, and int8 where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.int8 import quantize_weight
from rootlet_server.compiler.interpret import CONVOLUTIONS

if TYPE_CHECKING:
    from rootlet_server.compiler.config import BaseDtype
    from rootlet_server.compiler.trace import Program

aten = torch.ops.aten


def _layers(program: Program) -> dict[str, set[str]]:
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


def freeze(program: Program, base_dtype: BaseDtype, *, without: set[str]) -> dict[str, Tensor]:
    """The frozen tensors, by the names that ``interpret.base_product`` reads.

    A linear weight [out, in] becomes ``<name>:linear`` [in, out], or ``<name>:linear.q`` int8 with
    ``<name>:linear.scale`` [out]; convolutions are quantised per output channel, embeddings per
    row.

    Args:
        program: the traced model.
        base_dtype: ``int8`` or ``float32``.
        without: tensors that are not frozen (the head).
    """
    frozen: dict[str, Tensor] = {}
    for name, kinds in _layers(program).items():
        if name in without:
            continue
        tensor = program.tensors[name]
        for kind in sorted(kinds):
            frozen |= _stored(name, tensor, kind, base_dtype)
    return frozen


def _stored(name: str, tensor: Tensor, kind: str, base_dtype: BaseDtype) -> dict[str, Tensor]:
    int8 = base_dtype == "int8"
    if kind == "linear":
        weight = tensor.t().contiguous()
        if not int8:
            return {f"{name}:linear": weight}
        q, scale = quantize_weight(weight, channel_dim=1)
        return {f"{name}:linear.q": q, f"{name}:linear.scale": scale.flatten()}
    if kind in ("conv", "embedding") and int8:
        q, scale = quantize_weight(tensor, channel_dim=0)
        return {f"{name}:{kind}.q": q, f"{name}:{kind}.scale": scale}
    return {name: tensor}
