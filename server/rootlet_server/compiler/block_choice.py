"""Which blocks: the worst aligned first, until all are good enough or the budget is spent.

One block for each site is the start. The site whose gradient points furthest from the true one is
joined with the block above it, which brings its feedback nearer to the head; what the joined blocks
cost is counted, and a join that costs too much is not made.

Time is counted in multiply-accumulates of a training step. Memory is the bytes that autograd's tape
of the same graph holds between the forward pass and the way back, each tensor once and without the
frozen tensors; on a float32 base, and without what a runtime adds or saves by its own plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rootlet_server.compiler.alignment import AlignmentReport, alignment
from rootlet_server.compiler.blocks import find_points
from rootlet_server.compiler.cost import count_cost
from rootlet_server.compiler.feedback import make_feedback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.blocks import Point
    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.config import CompileConfig
    from rootlet_server.compiler.learner import Learner

LARGEST_SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """What ``block_size="auto"`` chose.

    Attributes:
        blocks: the adapted layers of each, from the input to the head; the last has exact credit.
        time: multiply-accumulates of a training step, as a share of backprop's.
        memory: bytes stored for the way back, as a share of backprop's.
        report: alignment with these blocks; ``report.below`` still misses the floor.
    """

    blocks: tuple[tuple[str, ...], ...]
    time: float
    memory: float
    report: AlignmentReport


def blocks_of(learner: Learner) -> tuple[tuple[str, ...], ...]:
    """The adapted layers of every block, from the input to the head."""
    modules = {site.node: site.module for site in learner.sites}
    below = [point.sites for point in learner.points or ()]
    top = tuple(node for node in modules if not any(node in sites for sites in below))
    groups = [tuple(modules[node] for node in sites) for sites in (*below, top)]
    return tuple(group for group in groups if group)


def choose_blocks(
    built: Built, float_frozen: Mapping[str, Tensor], x: Tensor, config: CompileConfig
) -> Built:
    """The same build with the blocks that ``block_size="auto"`` asks for.

    Args:
        built: with one block for each site.
        float_frozen: base and frozen A in float32, over which feedback is calibrated.
        x: calibration examples.
        config: what is compiled.

    Returns:
        a build whose sites are aligned by ``alignment.FLOOR`` at least, or as well as
        ``config.block_budget`` allows; its ``blocks`` says which.
    """
    sample, budget, sites = x[:LARGEST_SAMPLE], config.block_budget, built.step.learner.sites
    backprop = replace(built, step=replace(built.step, rule="backprop"))
    bounds = _macs(backprop), _stored(backprop, float_frozen, ())
    merged: tuple[int, ...] = ()
    refused: set[int] = set()
    while True:
        report = alignment(built, sample)
        index = _worst(report, [site.module for site in sites], refused)
        if index is None or len(merged) >= len(sites) - 1:
            break
        joined = _with_blocks(built, float_frozen, x, config, (*merged, index))
        time, memory = _shares(joined, float_frozen, bounds)
        if time > budget.time or memory > budget.memory:
            refused.add(index)
        else:
            built, merged = joined, (*merged, index)
    time, memory = _shares(built, float_frozen, bounds)
    choice = BlockChoice(
        blocks=blocks_of(built.step.learner), time=time, memory=memory, report=report
    )
    return replace(built, blocks=choice)


def _worst(report: AlignmentReport, modules: list[str], refused: set[int]) -> int | None:
    """The index of the site furthest below the floor that may still be joined."""
    cosines = {layer.module: layer.cosine for layer in report.below}
    found = [
        (cosine, index)
        for index, module in enumerate(modules)
        if index not in refused and (cosine := cosines.get(module)) is not None
    ]
    return min(found)[1] if found else None


def _with_blocks(
    built: Built,
    float_frozen: Mapping[str, Tensor],
    x: Tensor,
    config: CompileConfig,
    merged: tuple[int, ...],
) -> Built:
    learner = built.step.learner
    points = find_points(learner.program, learner.sites, built.example, 1, merged)
    learner = replace(learner, points=points)
    kept = {k: v for k, v in built.frozen.items() if ":feedback." not in k}
    feedback = make_feedback(learner, float_frozen, built.adapter, x, config)
    return replace(built, step=replace(built.step, learner=learner), frozen=kept | feedback)


def _shares(
    built: Built, float_frozen: Mapping[str, Tensor], bounds: tuple[int, int]
) -> tuple[float, float]:
    """(time, memory) of a build's blocks, as shares of backprop's."""
    stored = _stored(built, float_frozen, built.step.learner.points or ())
    return _macs(built) / max(bounds[0], 1), stored / max(bounds[1], 1)


def _macs(built: Built) -> int:
    with torch.no_grad():
        cost = count_cost(built.step, built.frozen, built.adapter, built.example, 0)
    return cost["train_macs_int8"] + cost["train_macs_float32"]


def _stored(built: Built, float_frozen: Mapping[str, Tensor], points: tuple[Point, ...]) -> int:
    stops = tuple(point.node for point in points)
    return stored_bytes(built.step.learner, float_frozen, built.adapter, built.example, stops)


def stored_bytes(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    stops: tuple[str, ...],
) -> int:
    """Bytes that one forward pass keeps for the way back down to every adapter.

    Args:
        learner: the learner.
        frozen: its base in float32; not counted.
        adapter: what learns; not counted.
        x: [N, ...].
        stops: nodes whose values are passed on without their derivative; none for backprop.
    """
    trainable = {k: v.detach().clone().requires_grad_() for k, v in adapter.items()}
    own = {t.untyped_storage().data_ptr() for t in (*frozen.values(), *trainable.values())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    at = dict.fromkeys(stops, torch.Tensor.detach)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        learner.forward(frozen, trainable, x, at=at)
    return sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own)
