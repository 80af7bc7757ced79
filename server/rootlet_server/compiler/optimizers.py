"""The optimiser's part of the training graph: ``rootlet_runtime.optimizers`` in torch, clipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_runtime import optimizers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Tensors = Mapping[str, Tensor]


def clip_factor(gradients: Tensors, max_gradient_norm: float) -> Tensor:
    """``C / max(||g||, C)`` with ``||g||`` over all tensors together, [] (Pascanu et al. 2013).

    It bounds the step of one batch, and nothing about one example: for privacy see
    ``clipping.py``. A gradient whose squared norm overflows float32 moves nothing.
    """
    norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])
    bounded: Tensor = torch.linalg.vector_norm(norms).clamp_min(max_gradient_norm)
    return max_gradient_norm / bounded


def optimize(  # noqa: PLR0917 (the order of the graph's inputs)
    optimizer: str,
    adapter: Tensors,
    gradients: Tensors,
    state: Tensors,
    learning_rate: Tensor,
    step: Tensor | None = None,
    *,
    hyperparameters: Mapping[str, float] | None = None,
    max_gradient_norm: float | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One update of the adapter and the optimiser's state, as part of a graph.

    Raises:
        ValueError: an unknown optimiser or hyperparameter, or no step where it is read.
    """
    if max_gradient_norm is not None:
        factor = clip_factor(gradients, max_gradient_norm)
        if optimizers.OPTIMIZERS[optimizer].slots:
            gradients = {name: g * factor for name, g in gradients.items()}
        else:  # without state, the rate may as well be scaled: one number instead of them all
            learning_rate = learning_rate * factor
    return optimizers.apply(
        torch,
        optimizer,
        adapter,
        gradients,
        state,
        learning_rate=learning_rate,
        step=step,
        hyperparameters=optimizers.resolve_hyperparameters(optimizer, hyperparameters or {}),
    )
