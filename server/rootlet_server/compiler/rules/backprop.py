"""Backpropagation through the frozen base: the control arm.

Its cost is a second pass through every frozen weight and every layer's tensors kept in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.losses import loss_terms, weighted_mean
from rootlet_server.compiler.rules.gradients import Gradients

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner


def backprop(  # noqa: PLR0917 (the signature of every rule)
    learner: Learner,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    w: Tensor,
) -> Gradients:
    """``d (sum_i w_i loss_i / sum_i w_i) / d adapter``, exactly."""

    def objective(trainable: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        terms = loss_terms(learner.task, learner.forward(frozen, trainable, x).output, y)
        return weighted_mean(terms.loss, w), weighted_mean(terms.metric, w)

    by_name, (loss, metric) = torch.func.grad_and_value(objective, has_aux=True)(dict(adapter))
    return Gradients(loss=loss, metric=metric, by_name=by_name)
