"""Optimisers: one definition of each, for the training graph and for the device outside it.

The formulae are written against a namespace ``xp``: torch where the compiler traces them into the
training graph, numpy where a device applies them to gradients that a graph has given (the private
step adds its noise in between). p is a tensor of the adapter, g its gradient, lr the learning
rate, t the step counted from 1; state lies in slots ``<slot>/<adapter name>`` that start at zero.

| name | update | source |
|---|---|---|
| ``sgd`` | p - lr g | |
| ``momentum`` | m = mu m + g; p - lr m | heavy ball, Polyak 1964 |
| ``nesterov`` | m = mu m + g; p - lr (g + mu m) | Sutskever et al. 2013 |
| ``adam`` | p - lr mh / (sqrt(vh) + eps) | Kingma & Ba 2015 |
| ``adamw`` | adam, after p (1 - lr decay) | Loshchilov & Hutter 2019 |
| ``sign_momentum`` | m = mu m + (1 - mu) g; p - lr sign(m) | Signum, Bernstein et al. 2018 |

Adam's m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, mh = m / (1 - b1^t) and
vh = v / (1 - b2^t). In float32, 1 - 0.999 is known to 6e-5 of itself, so
the powers are not subtracted: 1 - b^t = tanh(-t ln(b) / 2) (1 + exp(t ln(b))), whose factors are
exact to rounding, with ln(b) taken in float64.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Tensors of torch or numpy; step and learning rate may be torch's scalars.
Tensor = Any
Tensors = Mapping[str, Tensor]
Slots = tuple[Tensor, ...]
Rule = Callable[["Terms", Tensor, Tensor, Slots], tuple[Tensor, Slots]]

LARGEST_BETA = 1 - 1e-6
# The ONNX exporter deletes an addition of a constant of 1e-8 or less, and 0 / 0 follows.
SMALLEST_EPSILON = 2e-8


@dataclass(frozen=True)
class Hyperparameter:
    """A default and the bounds, both inclusive."""

    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Terms:
    """What one update shares between the tensors of the adapter."""

    xp: Any
    learning_rate: Any
    step: Any
    hyperparameters: Mapping[str, float]


@dataclass(frozen=True)
class Optimizer:
    """What an optimiser keeps and is told.

    Attributes:
        slots: its state, one tensor for each of the adapter's in every slot.
        hyperparameters: what it reads besides the learning rate.
        needs_step: whether it reads the step.
        rule: ``rule(terms, p, g, slots) -> (p, slots)``.
    """

    slots: tuple[str, ...]
    hyperparameters: Mapping[str, Hyperparameter]
    needs_step: bool
    rule: Rule


def _sgd(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    del slots
    return p - t.learning_rate * g, ()


def _momentum(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    m = t.hyperparameters["momentum"] * slots[0] + g
    return p - t.learning_rate * m, (m,)


def _nesterov(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    momentum = t.hyperparameters["momentum"]
    m = momentum * slots[0] + g
    return p - t.learning_rate * (g + momentum * m), (m,)


def _adam(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    beta1, beta2 = t.hyperparameters["beta1"], t.hyperparameters["beta2"]
    m = beta1 * slots[0] + (1 - beta1) * g
    v = beta2 * slots[1] + (1 - beta2) * g * g
    m_hat = m / one_minus_power(t.xp, beta1, t.step)
    v_hat = v / one_minus_power(t.xp, beta2, t.step)
    change = m_hat / (t.xp.sqrt(v_hat) + t.hyperparameters["epsilon"])
    return p - t.learning_rate * change, (m, v)


def _adamw(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    return _adam(t, p - t.learning_rate * t.hyperparameters["weight_decay"] * p, g, slots)


def _sign_momentum(t: Terms, p: Tensor, g: Tensor, slots: Slots) -> tuple[Tensor, Slots]:
    momentum = t.hyperparameters["momentum"]
    m = momentum * slots[0] + (1 - momentum) * g
    return p - t.learning_rate * t.xp.sign(m), (m,)


def one_minus_power(xp: Any, beta: float, step: Any) -> Any:
    """``1 - beta^step`` without the cancellation; a float for a plain step, else as ``step``."""
    if beta == 0:
        return 1.0
    functions = math if isinstance(step, int | float) else xp
    exponent = step * math.log(beta)
    return functions.tanh(-0.5 * exponent) * (1 + functions.exp(exponent))


_MOMENTUM = {"momentum": Hyperparameter(0.9, 0.0, LARGEST_BETA)}
_ADAM = {
    "beta1": Hyperparameter(0.9, 0.0, LARGEST_BETA),
    "beta2": Hyperparameter(0.999, 0.0, LARGEST_BETA),
    "epsilon": Hyperparameter(1e-7, SMALLEST_EPSILON, 1.0),
}
_DECAY = {"weight_decay": Hyperparameter(0.01, 0.0, 1.0)}

OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer(("m", "v"), _ADAM, True, _adam),
    "adamw": Optimizer(("m", "v"), _ADAM | _DECAY, True, _adamw),
    "momentum": Optimizer(("m",), _MOMENTUM, False, _momentum),
    "nesterov": Optimizer(("m",), _MOMENTUM, False, _nesterov),
    "sgd": Optimizer((), {}, False, _sgd),
    "sign_momentum": Optimizer(("m",), _MOMENTUM, False, _sign_momentum),
}


def resolve_hyperparameters(optimizer: str, given: Mapping[str, float]) -> dict[str, float]:
    """All hyperparameters of an optimiser: the given ones, and defaults for the rest.

    Raises:
        ValueError: an unknown optimiser or name, or a value outside its bounds.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer {optimizer!r}: must be one of {', '.join(OPTIMIZERS)}")
    known = OPTIMIZERS[optimizer].hyperparameters
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"hyperparameter {name!r}: {optimizer} reads {', '.join(known) or 'none'}"
            )
        low, high = known[name].low, known[name].high
        if not low <= value <= high:
            raise ValueError(f"hyperparameter {name} = {value}: must lie in {low}..{high}")
    return {name: float(given.get(name, bound.default)) for name, bound in known.items()}


def state_names(optimizer: str, adapter: Iterable[str]) -> list[str]:
    """The state's names in the order of the graph: slot by slot."""
    names = tuple(adapter)
    return [f"{slot}/{name}" for slot in OPTIMIZERS[optimizer].slots for name in names]


def apply(
    xp: Any,
    optimizer: str,
    adapter: Tensors,
    gradients: Tensors,
    state: Tensors,
    *,
    learning_rate: Any,
    step: Any,
    hyperparameters: Mapping[str, float],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One update in the arithmetic of ``xp``; nothing is changed in place.

    Args:
        xp: torch or numpy.
        optimizer: a name in ``OPTIMIZERS``.
        adapter: what learns, by name.
        gradients: as ``adapter``.
        state: the optimiser's tensors, by ``state_names``.
        learning_rate: a number, or a tensor [].
        step: counted from 1; None where the optimiser does not read it.
        hyperparameters: as :func:`resolve_hyperparameters` gives them.

    Returns:
        The new adapter and the new state.

    Raises:
        ValueError: the optimiser reads the step, and there is none.
    """
    chosen = OPTIMIZERS[optimizer]
    if chosen.needs_step and step is None:
        raise ValueError(f"{optimizer} needs the step, counted from 1")
    terms = Terms(xp, learning_rate, step, hyperparameters)
    new_adapter: dict[str, Tensor] = {}
    new_state: dict[str, Tensor] = {}
    for name, p in adapter.items():
        slots = tuple(state[f"{slot}/{name}"] for slot in chosen.slots)
        new_adapter[name], new_slots = chosen.rule(terms, p, gradients[name], slots)
        new_state |= {
            f"{slot}/{name}": value for slot, value in zip(chosen.slots, new_slots, strict=True)
        }
    return new_adapter, {name: new_state[name] for name in state_names(optimizer, adapter)}


def update(
    optimizer: str,
    adapter: Mapping[str, npt.NDArray[Any]],
    gradients: Mapping[str, npt.NDArray[Any]],
    state: Mapping[str, npt.NDArray[Any]],
    *,
    learning_rate: float,
    step: int,
    hyperparameters: Mapping[str, float] | None = None,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """One update outside the graph, in the precision of the arrays: :func:`apply` in numpy.

    Args:
        optimizer: a name in ``OPTIMIZERS``; a manifest's ``optimizer``.
        adapter: what learns, by name.
        gradients: as ``adapter``.
        state: the optimiser's arrays; zeros at the first step.
        learning_rate: step size.
        step: counted from 1 since the state was zero.
        hyperparameters: a manifest's ``hyperparameters``; what is absent has its default.

    Raises:
        ValueError: an unknown optimiser or hyperparameter, or a value outside its bounds.
    """
    return apply(
        np,
        optimizer,
        adapter,
        gradients,
        state,
        learning_rate=float(learning_rate),
        step=int(step),
        hyperparameters=resolve_hyperparameters(optimizer, hyperparameters or {}),
    )
