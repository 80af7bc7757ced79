"""Direct feedback alignment in blocks: feedback at the top of a block, exact credit inside.

A device holds the frozen weights, so credit can be passed down through them; feedback only has to
stand in for the way from the head to the top of a block. See ``rootlet_server.compiler.blocks``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rootlet_server.compiler.rules.exact import exact_credit, exact_gradients

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch, Factored, Gradients

    Tensors = Mapping[str, Tensor]


def dfa_blocks(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Factored:
    """Every example's gradient, in factors."""
    return exact_credit(learner, frozen, adapter, batch, weights_N, learner.points or ())


def dfa_blocks_gradients(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Gradients:
    """Their sum."""
    return exact_gradients(learner, frozen, adapter, batch, weights_N, learner.points or ())
