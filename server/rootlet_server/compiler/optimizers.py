"""Optimisers as pure functions, part of the training graph.

Each keeps its state in named slots, ``<slot>/<adapter name>``, that start at zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    Tensors = Mapping[str, Tensor]

BETA1, BETA2 = 0.9, 0.999
# Not the usual 1e-8: the ONNX exporter's optimiser deletes an addition of a constant that small,
# and 0/0 follows.
ADAM_EPSILON = 1e-7


@dataclass(frozen=True)
class Optimizer:
    """``update(adapter, gradients, state, learning_rate, step) -> (adapter, state)``.

    ``needs_step``: whether it reads the step, counted from 1.
    """

    slots: tuple[str, ...]
    needs_step: bool
    update: Callable[
        [Tensors, Tensors, Tensors, Tensor, Tensor | None],
        tuple[dict[str, Tensor], dict[str, Tensor]],
    ]


def sgd(
    adapter: Tensors, gradients: Tensors, state: Tensors, learning_rate: Tensor, step: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``p <- p - lr g``."""
    del state, step
    return {name: p - learning_rate * gradients[name] for name, p in adapter.items()}, {}


def adam(
    adapter: Tensors, gradients: Tensors, state: Tensors, learning_rate: Tensor, step: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adam (Kingma & Ba 2015), betas 0.9 and 0.999, epsilon 1e-7 outside the root."""
    if step is None:
        raise ValueError("adam needs the step number, counted from 1")
    new_adapter, new_state = {}, {}
    correction1, correction2 = 1 - BETA1**step, 1 - BETA2**step
    for name, p in adapter.items():
        g = gradients[name]
        m = BETA1 * state[f"m/{name}"] + (1 - BETA1) * g
        v = BETA2 * state[f"v/{name}"] + (1 - BETA2) * g * g
        new_adapter[name] = p - learning_rate * (m / correction1) / (
            (v / correction2).sqrt() + ADAM_EPSILON
        )
        new_state[f"m/{name}"], new_state[f"v/{name}"] = m, v
    return new_adapter, new_state


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(slots=("m", "v"), needs_step=True, update=adam),
    "sgd": Optimizer(slots=(), needs_step=False, update=sgd),
}


def state_names(optimizer: str, adapter: Iterable[str]) -> list[str]:
    """The state's names in the order of the graph: slot by slot."""
    return [f"{slot}/{name}" for slot in OPTIMIZERS[optimizer].slots for name in adapter]
