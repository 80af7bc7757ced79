"""Which blocks: the worst aligned first, until all are good enough or the budget is spent.

One block for each site is the start. The site whose gradient points furthest from the true one is
joined with the block above it, which brings its feedback nearer to the head; what the joined blocks
cost is counted, and a join that costs too much is not made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.alignment import FLOOR, alignment
from rootlet_server.compiler.blocks import find_points
from rootlet_server.compiler.cost import count_cost
from rootlet_server.compiler.feedback import make_feedback

if TYPE_CHECKING:
    from torch import Tensor

    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.config import CompileConfig

LARGEST_SAMPLE = 64


def choose_blocks(built: Built, x: Tensor, config: CompileConfig) -> Built:
    """The same build with the blocks that ``block_size="auto"`` asks for.

    Args:
        built: with one block for each site.
        x: calibration examples.
        config: what is compiled.

    Returns:
        a build whose sites are aligned by ``alignment.FLOOR`` at least, or as well as
        ``config.block_budget`` allows.
    """
    sample = x[:LARGEST_SAMPLE]
    bound = config.block_budget * _macs(replace(built, step=replace(built.step, rule="backprop")))
    merged: tuple[int, ...] = ()
    refused: set[int] = set()
    sites = built.step.learner.sites
    while len(merged) < len(sites) - 1:
        cosines = {layer.module: layer.cosine for layer in alignment(built, sample).layers}
        worst = sorted(
            (cosine, index)
            for index, site in enumerate(sites)
            if (cosine := cosines[site.module]) is not None
            and cosine < FLOOR
            and index not in refused
        )
        if not worst:
            break
        index = worst[0][1]
        joined = _with_blocks(built, x, config, (*merged, index))
        if _macs(joined) > bound:
            refused.add(index)
        else:
            built, merged = joined, (*merged, index)
    return built


def _with_blocks(built: Built, x: Tensor, config: CompileConfig, merged: tuple[int, ...]) -> Built:
    learner = built.step.learner
    points = find_points(learner.program, learner.sites, built.example, 1, merged)
    learner = replace(learner, points=points)
    frozen = {k: v for k, v in built.frozen.items() if ":feedback." not in k}
    frozen |= make_feedback(
        learner,
        frozen,
        built.adapter,
        x,
        form=config.feedback_form,
        rank=config.feedback_rank,
        each_position=config.feedback_positions == "each",
        seed=config.seed,
    )
    return replace(built, step=replace(built.step, learner=learner), frozen=frozen)


def _macs(built: Built) -> int:
    with torch.no_grad():
        cost = count_cost(built.step, built.frozen, built.adapter, built.example, 0)
    return cost["train_macs_int8"] + cost["train_macs_float32"]
