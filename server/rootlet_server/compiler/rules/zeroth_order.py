"""Two forward passes and a random direction: SPSA (Spall 1992), MeZO (Malladi et al. 2023).

    g_n = c_n z,    c_n = (loss_n(theta + eps z) - loss_n(theta - eps z)) / (2 eps)

with z of plus and minus ones, the same for all examples of a step. z is no random operator's but a
function of the step and the element's number, computed in whole numbers: three permutations
``h -> h^5 mod p`` of the residues of the prime p = 2^31 - 1, with the step mixed in between them.
Five has no factor in common with p - 1, so each is a permutation; products stay below 2^62. Loss
and metric are the means of the two passes, which differ from those at theta by O(eps^2).

Shape legend: N examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Credit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch

    Tensors = Mapping[str, Tensor]

# The derivative's error grows as EPSILON^2, that of rounding as 1e-7 / EPSILON.
EPSILON = 1e-3
PRIME = 2**31 - 1
STEP_OFFSET, ELEMENT_OFFSET = 1_013_904_223, 69_621


@dataclass(frozen=True, kw_only=True)
class Projected(Credit):
    """Per-example gradients along one direction.

    Attributes:
        loss, metric: [N].
        slopes: c_n [N], times each example's weight.
        direction: z by adapter name.
    """

    loss: Tensor
    metric: Tensor
    slopes: Tensor
    direction: Tensors

    def squared_norms(self) -> Tensor:
        """``c_n^2`` times the number of elements, [N]."""
        return self.slopes.square() * sum(z.numel() for z in self.direction.values())

    def total(self, factors_N: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        slopes_N = self.slopes
        if factors_N is not None:
            slopes_N = torch.where(factors_N == 0, 0.0, slopes_N) * factors_N
        slope = slopes_N.sum()
        return {name: slope * z for name, z in self.direction.items()}


def _permuted(h: Tensor) -> Tensor:
    """``h^5 mod p``."""
    squared = (h * h).remainder(PRIME)
    return ((squared * squared).remainder(PRIME) * h).remainder(PRIME)


def signs(step: Tensor, first: int, shape: torch.Size) -> Tensor:
    """Plus and minus ones for elements ``first``, ``first + 1``, ... at a step, of ``shape``."""
    turn = _permuted(step.to(torch.int64) + STEP_OFFSET)
    h = torch.arange(first, first + shape.numel(), device=step.device) + ELEMENT_OFFSET
    h = _permuted((_permuted(h) + turn).remainder(PRIME))
    return (1 - 2 * h.remainder(2)).to(step.dtype).reshape(shape)


def zeroth_order(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Projected:
    """Every example's gradient along the step's direction.

    Raises:
        ValueError: the batch has no step.
    """
    if batch.step is None:
        raise ValueError("zeroth_order needs the step number, counted from 1")
    direction, first = {}, 0
    for name, value in adapter.items():
        direction[name] = signs(batch.step, first, value.shape).to(value.dtype)
        first += value.numel()
    plus, minus = (
        loss_terms(
            learner.task,
            learner.forward(
                frozen,
                {name: value + epsilon * direction[name] for name, value in adapter.items()},
                batch.x,
            ).output,
            batch.y,
        )
        for epsilon in (EPSILON, -EPSILON)
    )
    return Projected(
        loss=(plus.loss + minus.loss) / 2,
        metric=(plus.metric + minus.metric) / 2,
        slopes=(plus.loss - minus.loss) * (weights_N / (2 * EPSILON)),
        direction=direction,
    )
