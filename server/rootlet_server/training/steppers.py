"""How each kind of optimiser takes one step, given a function that evaluates the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rootlet_server.training.curvature import (
    gauss_newton_product,
    hessian_product,
    hutchinson_diagonal,
    trained,
)
from rootlet_server.training.losses import example_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer

    from rootlet_server.training.config import FullTrainingConfig
    from rootlet_server.training.engine import Engine

    Evaluate = Callable[[], Tensor]
    Batch = tuple[Tensor, Tensor]


def take_step(  # noqa: PLR0917
    config: FullTrainingConfig,
    engine: Engine,
    optimizer: Optimizer,
    evaluate: Evaluate,
    batch: Callable[[], Batch],
    step: int,
) -> Tensor:
    """One step of any optimiser.

    Args:
        config: which one.
        engine: where it runs.
        optimizer: the optimiser.
        evaluate: sets the gradients of the whole batch, bounded as the configuration says, and
            returns its mean loss; may be called again after the parameters moved.
        batch: this process's share of the batch, for curvature.
        step: from 0.

    Returns:
        the loss before the step, [].
    """
    name = config.optimizer.name
    run: Any = optimizer.step
    if config.optimizer.sam_rho:
        loss = evaluate()
        run(evaluate)
    elif name == "lbfgs":
        loss = _lbfgs(run, evaluate)
    elif name == "hessian_free":
        loss = _hessian_free(config, engine, run, evaluate, batch())
    elif name == "kfac":
        observe: Any = optimizer
        observe.observe(engine.plain, config.task, batch()[0])
        loss = evaluate()
        run()
    elif name == "sophia":
        loss = _sophia(config, engine, optimizer, evaluate, batch, step)
    elif engine.scaler is not None:
        loss = evaluate()
        engine.scaler.step(optimizer)
        engine.scaler.update()
    else:
        loss = evaluate()
        run()
    return loss


def _lbfgs(run: Any, evaluate: Evaluate) -> Tensor:
    first: list[Tensor] = []

    def closure() -> Tensor:
        loss = evaluate()
        first.append(loss)
        return loss

    run(closure)
    return first[0]


def _hessian_free(
    config: FullTrainingConfig, engine: Engine, run: Any, evaluate: Evaluate, batch: Batch
) -> Tensor:
    x, y = batch
    model = engine.plain

    def loss_now() -> Tensor:
        return example_losses(config.task, model(x), y).mean()

    loss: Tensor = run(evaluate, product=gauss_newton_product(model, config.task, x), loss=loss_now)
    return loss


def _sophia(  # noqa: PLR0917
    config: FullTrainingConfig,
    engine: Engine,
    optimizer: Optimizer,
    evaluate: Evaluate,
    batch: Callable[[], Batch],
    step: int,
) -> Tensor:
    """Every ``update_period`` steps the Hessian's diagonal, averaged over processes."""
    run: Any = optimizer.step
    every: int = getattr(optimizer, "update_period", 10)
    if step % every:
        loss = evaluate()
        run()
        return loss
    x, y = batch()
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    model = engine.plain
    product = hessian_product(model, config.task, x, y)
    diagonal = hutchinson_diagonal(product, list(trained(model).values()), rng)
    named = dict(zip(trained(model), diagonal, strict=True))
    ids = {id(p): name for name, p in trained(model).items()}
    in_groups = [
        engine.total(named[ids[id(p)]]) / engine.world
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    loss = evaluate()
    run(hessian=in_groups)
    return loss
