"""The pure step: one definition, exported for devices, stacked to simulate, tested in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from rootlet_runtime.optimizers import state_names
from rootlet_server.compiler.clipping import clipped_gradients
from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.losses import (
    example_weights,
    finite_sum,
    loss_terms,
    targets,
    weighted_mean,
)
from rootlet_server.compiler.optimizers import optimize
from rootlet_server.compiler.rules import RULES, Batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.latent import Halves
    from rootlet_server.compiler.learner import Learner

    Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A learner with its rule and optimiser.

    Attributes:
        learner: the adapted model.
        rule: a name in ``RULES``.
        optimizer: a name in ``rootlet_runtime.optimizers.OPTIMIZERS``.
        hyperparameters: the optimiser's; what is absent has its default.
        max_gradient_norm: bound on the norm of a batch's gradient; None for none.
        adapter: shapes of what learns, by name, in the order of the graph.
        latent: where the model is cut, if it is: all but ``predict`` and ``encode`` take latents.
        distils: whether the train graph takes a teacher.
    """

    learner: Learner
    rule: str
    optimizer: str
    adapter: dict[str, torch.Size]
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    max_gradient_norm: float | None = None
    latent: Halves | None = None
    distils: bool = False

    @property
    def tail(self) -> Learner:
        """What learns from the latent on; the whole learner where there is none."""
        return (
            self.learner if self.latent is None else replace(self.learner, program=self.latent.tail)
        )

    @property
    def state(self) -> list[str]:
        """Names of the optimiser's tensors in the graph's order, each of its adapter's shape."""
        return state_names(self.optimizer, self.adapter)

    def train(  # noqa: PLR0917 (the order of the graph's inputs)
        self,
        frozen: Tensors,
        adapter: Tensors,
        state: Tensors,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        learning_rate: Tensor,
        step: Tensor | None = None,
        teacher: Tensor | None = None,
        teacher_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One training step.

        Args:
            frozen: the base, feedback and frozen A.
            adapter: what learns.
            state: the optimiser's tensors.
            x: [N, ...].
            y: [N] int64, or [N, K] for regression.
            w: [N] weights; 0 leaves an example out.
            learning_rate: [].
            step: [] counted from 1, where the optimiser needs it.
            teacher: [N, K] class probabilities or values to learn beside y (Li & Hoiem 2017, at
                temperature 1): the target becomes ``(1 - a) y + a teacher``, so the loss is
                ``(1 - a) CE(y) + a CE(teacher)``, whose derivative is that of ``KL(teacher || p)``.
            teacher_weight: a, [N].

        Returns:
            loss [], metric [], the new adapter and the new state.
        """
        if teacher is not None and teacher_weight is not None:
            a_N1 = teacher_weight.unsqueeze(1)
            y = (1 - a_N1) * targets(self.learner.task, teacher, y) + a_N1 * teacher
        batch = Batch(x=x, y=y, step=step)
        gradients = RULES[self.rule].gradients(
            self.tail, frozen, adapter, batch, example_weights(w)
        )
        new_adapter, new_state = optimize(
            self.optimizer,
            adapter,
            gradients.by_name,
            state,
            learning_rate,
            step,
            hyperparameters=self.hyperparameters,
            max_gradient_norm=self.max_gradient_norm,
        )
        loss, metric = (weighted_mean(each, w) for each in (gradients.loss, gradients.metric))
        return loss, metric, new_adapter, new_state

    def gradients(  # noqa: PLR0917 (the order of the graph's inputs)
        self,
        frozen: Tensors,
        adapter: Tensors,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        max_grad_norm: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The private step's part: ``sum_n w_n min(1, C / ||g_n||) g_n``; see ``clipping.py``.

        Args:
            frozen: the base, feedback and frozen A.
            adapter: what learns.
            x: [N, ...].
            y: [N] int64, or [N, K] for regression.
            w: [N], 1 for the examples that count and 0 for the others.
            max_grad_norm: C, [].

        Returns:
            Sums of loss, metric and weight, each [], which are not private; and the clipped sums.
        """
        rule, batch = RULES[self.rule], Batch(x=x, y=y)
        credit = rule.credit(self.tail, frozen, adapter, batch, torch.ones_like(w))
        gradients = clipped_gradients(credit, w, max_grad_norm)
        loss, metric = (finite_sum(each, w) for each in (gradients.loss, gradients.metric))
        return loss, metric, w.sum(), gradients.by_name

    def evaluate(
        self, frozen: Tensors, adapter: Tensors, x: Tensor, y: Tensor, w: Tensor
    ) -> tuple[Tensor, ...]:
        """Weighted sums over the batch: loss, metric and weight, each []."""
        terms = loss_terms(self.learner.task, self.tail.forward(frozen, adapter, x).output, y)
        return (terms.loss * w).sum(), (terms.metric * w).sum(), w.sum()

    def encode(self, frozen: Tensors, x: Tensor) -> Tensor:
        """Latents [N, ...] of x; x itself where the model is not cut."""
        if self.latent is None:
            return x
        dtype = self.learner.float_dtype
        return run(self.latent.prefix, frozen, x, float_dtype=dtype)[0]

    def predict(self, frozen: Tensors, adapter: Tensors, x: Tensor) -> Tensor:
        """Class probabilities or regression values, [N, K]."""
        output = self.learner.forward(frozen, adapter, x).output
        return output.softmax(1) if self.learner.task == "classification" else output
