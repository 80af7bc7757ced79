"""Per-example clipping: what bounds the influence of one example on a private step.

With g_n the gradient of example n over all adapter tensors together and C = ``max_grad_norm``,

    sum_n w_n min(1, C / ||g_n||) g_n                          (Abadi et al. 2016)

Guarantees, for any batch that the graph accepts:

- One example changes the sum by at most C, up to float32 rounding, whatever its values: an example
  whose squared norm is not a number or above ``LARGEST`` adds nothing.
- An example's term depends on that example alone.

Shape legend: N examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.rules.credit import Gradients

if TYPE_CHECKING:
    from torch import Tensor

    from rootlet_server.compiler.rules.credit import Credit

LARGEST = 1e37  # float32 ends at 3.4e38, and comparing with infinity takes two operators


def clip_factors(squared_norms_N: Tensor, max_grad_norm: Tensor) -> Tensor:
    """``min(1, C / ||g_n||)``, [N]; 0 where the norm is not finite."""
    finite = squared_norms_N <= LARGEST
    norms = torch.where(finite, squared_norms_N, 1.0).sqrt()
    return torch.where(finite, max_grad_norm / norms.maximum(max_grad_norm), 0.0)


def clipped_gradients(credit: Credit, weights_N: Tensor, max_grad_norm: Tensor) -> Gradients:
    """The clipped sum of a batch's gradients.

    Args:
        credit: of examples of weight 1.
        weights_N: 1 for the examples that count, 0 for the others; held to 0..1.
        max_grad_norm: C, [].

    Returns:
        loss and metric of each example, as the rule gives them, and
        ``sum_n w_n min(1, C / ||g_n||) g_n``.
    """
    compact = credit.compact()
    factors_N = clip_factors(compact.squared_norms(), max_grad_norm) * weights_N.clamp(0, 1)
    return Gradients(loss=credit.loss, metric=credit.metric, by_name=compact.total(factors_N))
