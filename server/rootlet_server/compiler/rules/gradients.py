"""What a rule returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gradients:
    """Loss [] and metric [], weighted means; d loss / d adapter (or its substitute) by name."""

    loss: Tensor
    metric: Tensor
    by_name: dict[str, Tensor]
