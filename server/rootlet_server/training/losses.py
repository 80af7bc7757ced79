"""The loss and the metric of each example, [N]; classification may have a teacher.

| task | loss | metric |
|---|---|---|
| classification | ``-log softmax(z)_y`` | 1 where the largest logit is y's |
| regression | ``mean_k (z_k - y_k)^2`` | the same |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def example_losses(task: str, output_NK: Tensor, y: Tensor) -> Tensor:
    """[N], in float32."""
    output_NK = output_NK.float()
    if task == "classification":
        return F.cross_entropy(output_NK, y, reduction="none")
    return (output_NK - y.float()).square().mean(1)


def example_metrics(task: str, output_NK: Tensor, y: Tensor) -> Tensor:
    """[N], float32: right or wrong, or the squared error."""
    if task == "classification":
        return (output_NK.argmax(1) == y).float()
    return (output_NK.float() - y.float()).square().mean(1)
