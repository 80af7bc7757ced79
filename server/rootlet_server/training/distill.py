"""Distillation: a small base learns from a larger model of the server (Hinton et al. 2015).

    classification   (1 - a) CE(y, z) + a T^2 KL(softmax(t / T) || softmax(z / T))
    regression       (1 - a) mse(y, z) + a mse(t, z)

with t the teacher's outputs and T the temperature. T^2 keeps the two gradients of one size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.losses import example_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


def distillation_loss(
    teacher: nn.Module, task: str, *, weight: float = 0.7, temperature: float = 2.0
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The ``loss`` of ``train``: (x, outputs, y) to [N].

    Args:
        teacher: a model of the same inputs and outputs; put in eval mode, never changed.
        task: classification or regression.
        weight: a, the teacher's share, 0 to 1.
        temperature: T.

    Raises:
        FullTrainingConfigError: a weight or temperature out of bounds.
    """
    if not (0 <= weight <= 1 and 0 < temperature < float("inf")):
        raise FullTrainingConfigError(
            f"weight={weight!r}, temperature={temperature!r}: the weight lies in 0..1 and the "
            "temperature is positive; 0.7 and 2 are usual."
        )
    teacher.eval().requires_grad_(False)

    def loss(x: Tensor, output_NK: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            taught_NK = teacher.to(x.device)(x)
        own = example_losses(task, output_NK, y)
        if task == "regression":
            return (1 - weight) * own + weight * example_losses(task, output_NK, taught_NK)
        divergence = F.kl_div(
            F.log_softmax(output_NK.float() / temperature, 1),
            F.log_softmax(taught_NK.float() / temperature, 1),
            reduction="none",
            log_target=True,
        ).sum(1)
        return (1 - weight) * own + weight * temperature**2 * divergence

    return loss
