"""Per-example losses with their derivative at the output, and the metric that goes with each task.

Shape legend: N examples, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rootlet_server.compiler.config import Task

SMALLEST_WEIGHT = 1e-6
LARGEST_VALUE = 1e37  # float32 ends at 3.4e38


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """loss [N], error = d loss / d output [N, K], metric [N]."""

    loss: Tensor
    error: Tensor
    metric: Tensor


def loss_terms(task: Task, output: Tensor, y: Tensor) -> LossTerms:
    """The loss of each example.

    classification: ``-log softmax(z)_y`` with error ``softmax(z) - onehot(y)``; the metric is 1
    where the largest output is y. Soft targets t take onehot(y)'s place: ``-sum_k t_k log p_k``,
    and their largest is y. regression: ``mean_k (z_k - y_k)^2`` with error ``2 (z - y) / K``; the
    metric is the loss.

    Args:
        task: which of the two.
        output: [N, K].
        y: [N] int64 class, or [N, K] targets; for classification soft ones, which sum to one.
    """
    if task == "regression":
        difference = output - y
        loss = (difference * difference).mean(1)
        return LossTerms(loss=loss, error=difference * (2 / output.shape[1]), metric=loss)
    log_p = output.log_softmax(1)
    target_NK = targets(task, output, y)
    label = y if y.dim() == 1 else y.argmax(1)
    correct = (output.argmax(1) == label).to(output.dtype)
    return LossTerms(
        loss=-(log_p * target_NK).sum(1), error=log_p.exp() - target_NK, metric=correct
    )


def targets(task: Task, output: Tensor, y: Tensor) -> Tensor:
    """What the output is to become, [N, K]: one-hot classes, soft targets, or values."""
    if task == "regression" or y.dim() == 2:
        return y
    classes = torch.arange(output.shape[1], device=output.device)
    return (y.unsqueeze(1) == classes).to(output.dtype)


def example_weights(w: Tensor) -> Tensor:
    """``w_n / sum w``, [N]; zero where all weights are zero."""
    return w / w.sum().clamp_min(SMALLEST_WEIGHT)


def weighted_mean(values: Tensor, w: Tensor) -> Tensor:
    """``sum_n w_n v_n / sum w``; zero where all weights are zero."""
    return (values * w).sum() / w.sum().clamp_min(SMALLEST_WEIGHT)


def finite_sum(values: Tensor, w: Tensor) -> Tensor:
    """``sum_n w_n v_n`` over the values that are finite."""
    return (torch.where(values.abs() <= LARGEST_VALUE, values, 0.0) * w).sum()
