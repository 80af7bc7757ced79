"""The optimisers by name: torch's, pytorch_optimizer's, and two of our own.

| name | from | how it steps |
|---|---|---|
| sgd (momentum 0.9), adam, adamw | torch | from a gradient |
| lamb, lars, lion, shampoo, soap | pytorch_optimizer | from a gradient |
| sophia | pytorch_optimizer's SophiaH | a gradient, and each ten steps a Hessian's diagonal |
| lbfgs | torch | evaluates the loss several times |
| kfac | ``kfac.py`` | a gradient, and each ten steps the layers' Fisher factors |
| hessian_free | ``hessian_free.py`` | products with the Gauss-Newton matrix |
| any first-order one with ``sam_rho`` | pytorch_optimizer's SAM around it | two gradients |

Matrices decay, vectors (biases, norms) never do.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from rootlet_runtime.errors import MissingExtraError
from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.hessian_free import HessianFree
from rootlet_server.training.kfac import KFAC

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from rootlet_server.training.config import OptimizerConfig

TORCH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
KEPT = {
    "lamb": "Lamb", "lars": "LARS", "lion": "Lion", "sophia": "SophiaH", "shampoo": "Shampoo",
    "soap": "SOAP",
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lbfgs": {"max_iter": 10, "history_size": 20, "line_search_fn": "strong_wolfe"},
    "shampoo": {"preconditioning_compute_steps": 10},
}
RESERVED = ("lr", "params", "model", "weight_decay", "parameters")


def kept_library() -> Any:
    """pytorch_optimizer.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("pytorch_optimizer")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'this optimiser needs pytorch_optimizer; run: pip install "rootlet[training]"'
        ) from error


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimiser of a configuration over what learns in a model.

    Raises:
        FullTrainingConfigError: a hyperparameter that the optimiser does not have or refuses.
        MissingExtraError: it is pytorch_optimizer's, which is not installed.
    """
    name = config.name
    settings = DEFAULTS.get(name, {}) | dict(config.hyperparameters)
    kind: Any = {"lbfgs": torch.optim.LBFGS, "kfac": KFAC, "hessian_free": HessianFree}.get(name)
    kind = kind or TORCH.get(name) or getattr(kept_library(), KEPT[name])
    check_hyperparameters(name, kind, settings)
    learning = [p for p in model.parameters() if p.requires_grad]
    made: Optimizer
    try:
        if name in ("lbfgs", "hessian_free"):
            whole: Optimizer = kind(learning, lr=config.learning_rate, **settings)
            return whole
        if name == "kfac":
            return KFAC(model, config.learning_rate, weight_decay=config.weight_decay, **settings)
        groups = [
            {"params": [p for p in learning if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if config.sam_rho:
            sam = kept_library().SAM
            made = sam(groups, kind, rho=config.sam_rho, lr=config.learning_rate, **settings)
        else:
            made = kind(groups, lr=config.learning_rate, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise FullTrainingConfigError(
            f"optimizer.hyperparameters={settings!r} for {name!r}: {error}."
        ) from error
    return made


def check_hyperparameters(name: str, kind: Any, settings: dict[str, Any]) -> None:
    """Every key must be one of the constructor's.

    Raises:
        FullTrainingConfigError: one is not, or has a place of its own in the configuration.
    """
    known = [
        key
        for key, p in inspect.signature(kind.__init__).parameters.items()
        if key not in ("self", *RESERVED) and p.kind is not p.VAR_KEYWORD
    ]
    for key in settings:
        if key not in known:
            raise FullTrainingConfigError(
                f"optimizer.hyperparameters.{key} is not one of {name!r}'s: {', '.join(known)}."
            )
