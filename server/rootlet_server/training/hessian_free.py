"""Hessian-free optimisation (Martens 2010): Newton steps with the Gauss-Newton matrix, by CG.

Each step solves ``(G + damping I) d = -gradient`` approximately, starting from 0.95 of the last
solution, goes back along d until the loss falls enough (Armijo), and adapts the damping by how far
the fall of the loss was the one that the quadratic promised (Levenberg & Marquardt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from rootlet_server.training.curvature import conjugate_gradient, dot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from rootlet_server.training.curvature import MatVec

KEEP = 0.95  # of the last direction
SUFFICIENT = 1e-2  # Armijo's constant
HALVINGS = 10
RAISE, LOWER = 1.5, 2 / 3
LOW_RATIO, HIGH_RATIO = 0.25, 0.75


class HessianFree(Optimizer):
    """The optimiser.

    Args:
        parameters: what learns.
        lr: the length of a whole step; 1 is Newton's.
        damping: at the start.
        cg_iterations: at most, each step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1.0,
        *,
        damping: float = 1.0,
        cg_iterations: int = 30,
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "damping": damping})
        self.cg_iterations = cg_iterations

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor], *, product: MatVec, loss: Callable[[], Tensor]
    ) -> Tensor:
        """One step.

        Args:
            closure: computes the loss and the gradients.
            product: v -> G v at the present parameters.
            loss: the loss at whatever the parameters are then, without gradients.

        Returns:
            the loss before the step.
        """
        with torch.enable_grad():
            before = closure().detach()
        group = self.param_groups[0]
        parameters = [p for p in group["params"] if p.grad is not None]
        start = [
            KEEP * self.state[p]["direction"] for p in parameters if "direction" in self.state[p]
        ]
        gradient = [p.grad for p in parameters]
        d, promised = conjugate_gradient(
            product,
            [-g for g in gradient],
            damping=group["damping"],
            start=start if len(start) == len(parameters) else None,
            iterations=self.cg_iterations,
        )
        slope = float(dot(gradient, d))
        if slope >= 0:  # the old direction misled the solver: start anew
            d, promised = conjugate_gradient(
                product, [-g for g in gradient], damping=group["damping"],
                iterations=self.cg_iterations,
            )  # fmt: skip
            slope = float(dot(gradient, d))
        for p, part in zip(parameters, d, strict=True):
            self.state[p]["direction"] = part
        fall = self._line_search(parameters, d, float(before), slope, loss)
        ratio = fall / promised if promised < 0 else 0.0
        if ratio < LOW_RATIO:
            group["damping"] *= RAISE
        elif ratio > HIGH_RATIO:
            group["damping"] *= LOWER
        return before

    def _line_search(
        self, parameters: list[Any], d: list[Tensor], before: float, slope: float,
        loss: Callable[[], Tensor],
    ) -> float:  # fmt: skip
        """Move along d; returns the change of the loss, 0 where no length lowered it."""
        start = [p.clone() for p in parameters]
        length = self.param_groups[0]["lr"]
        for _ in range(HALVINGS):
            for p, origin, part in zip(parameters, start, d, strict=True):
                p.copy_(origin + length * part)
            change = float(loss()) - before
            if change <= SUFFICIENT * length * slope:
                return change
            length /= 2
        for p, origin in zip(parameters, start, strict=True):
            p.copy_(origin)
        return 0.0
