"""A precision for every layer, by how much each changes the model's outputs.

Damage d(l, t) is what storing layer l alone as dtype t does to the outputs over calibration data:
the mean ``KL(softmax z || softmax z')`` in nats for classification, or the mean square change over
the outputs' variance for regression. The search

1. gives every layer the smallest dtype whose damage is below ``tolerance``;
2. under a budget in bytes, goes on to smaller dtypes, the layer with the least damage per byte
   saved first, until the base fits.

Damages are measured one layer at a time and taken to add up, which they do while they are small
(Dong et al. 2019, HAWQ, rank layers likewise by their own perturbation).

Shape legend: N examples, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.base import freeze, layers
from rootlet_server.compiler.errors import CompileError
from rootlet_server.compiler.interpret import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.choice_config import MixedConfig
    from rootlet_server.compiler.config import LayerDtype, Task
    from rootlet_server.compiler.conv_ranges import ConvRanges
    from rootlet_server.compiler.trace import Program

EXAMPLES = 64  # of the calibration data
CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """What was measured of a layer and chosen for it.

    Attributes:
        tensor: name of its weight.
        chosen: its dtype.
        size: bytes by dtype.
        damage: of the outputs by dtype; zero for float32.
    """

    tensor: str
    chosen: LayerDtype
    size: Mapping[LayerDtype, int]
    damage: Mapping[LayerDtype, float]


def choose_precision(
    program: Program,
    x: Tensor,
    config: MixedConfig,
    *,
    task: Task,
    without: set[str],
    ranges: Mapping[str, ConvRanges],
) -> tuple[LayerPrecision, ...]:
    """Measure every layer in every dtype, and choose.

    Args:
        program: the traced model.
        x: calibration data [N, ...]; the first 64 examples are read.
        config: the tolerance and the budget.
        task: what the outputs are.
        without: tensors that are not frozen (the head).
        ranges: of convolutions in integers.

    Raises:
        CompileError: the smallest base is larger than the budget.
    """
    names = [n for n, kinds in layers(program).items() if n not in without and kinds != {"plain"}]
    float_base = freeze(program, "float32", without=without)
    rest = sum(_size(t) for n, t in float_base.items() if n.partition(":")[0] not in names)
    reference = _outputs(program, program.tensors, x)
    measured = []
    for name in names:
        size: dict[LayerDtype, int] = {}
        damage: dict[LayerDtype, float] = {}
        dtypes: tuple[LayerDtype, ...] = ("float32", "int8", "int4")
        for dtype in dtypes:
            base = freeze(program, {name: dtype}, without=without, ranges=ranges)
            own = {k: t for k, t in base.items() if k.partition(":")[0] == name}
            total = sum(_size(t) for t in own.values())
            if size and total >= min(size.values()):
                continue  # a layer that int4 cannot hold is stored in int8 instead
            size[dtype] = total
            changed = _outputs(program, {**program.tensors, **base}, x)
            damage[dtype] = 0.0 if dtype == "float32" else _damage(reference, changed, task)
        within = [dtype for dtype in size if damage[dtype] <= config.tolerance]
        measured.append(LayerPrecision(tensor=name, chosen=within[-1], size=size, damage=damage))
    return tuple(_fit(measured, rest, config.budget_bytes))


def _fit(found: list[LayerPrecision], rest: int, budget: int | None) -> list[LayerPrecision]:
    """Make layers smaller until they fit; ``rest`` bytes are not theirs."""
    chosen = {layer.tensor: layer for layer in found}
    while budget is not None and rest + sum(_bytes(layer) for layer in chosen.values()) > budget:
        steps = [
            LayerPrecision(tensor=now.tensor, chosen=t, size=now.size, damage=now.damage)
            for now in chosen.values()
            for t in now.size
            if now.size[t] < _bytes(now)
        ]
        if not steps:
            smallest = rest + sum(_bytes(layer) for layer in chosen.values())
            raise CompileError(
                f"mixed.budget_bytes={budget} is less than the smallest base, {smallest} bytes. "
                "Raise the budget, or take a smaller model."
            )
        best = min(steps, key=lambda step: _price(chosen[step.tensor], step))
        chosen[best.tensor] = best
    return list(chosen.values())


def _bytes(layer: LayerPrecision) -> int:
    return layer.size[layer.chosen]


def _price(now: LayerPrecision, step: LayerPrecision) -> float:
    """Damage added for each byte saved."""
    added = step.damage[step.chosen] - now.damage[now.chosen]
    return added / (_bytes(now) - _bytes(step))


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _outputs(program: Program, frozen: Mapping[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [run(program, frozen, part)[0] for part in torch.split(x[:EXAMPLES], CHUNK)]
    return torch.cat(parts)


def _damage(reference_NK: Tensor, changed_NK: Tensor, task: Task) -> float:
    if task == "regression":
        variance = reference_NK.var().clamp_min(1e-12)
        return float((changed_NK - reference_NK).square().mean() / variance)
    before, after = reference_NK.double().log_softmax(1), changed_NK.double().log_softmax(1)
    return float((before.exp() * (before - after)).sum(1).mean())
