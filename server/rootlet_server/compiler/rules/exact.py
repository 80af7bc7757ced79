"""Exact credit below feedback: the derivative of a surrogate of the loss.

With S the tops of the blocks, c_s their values and delta_s what is broadcast to them,

    surrogate = sum_n weights_n loss_n + sum_s <delta_s, c_s>,    delta_s = v_P (u M_s)

in which delta is held constant and nothing above a top sees a change below it: every value is
passed on without its derivative. Without tops this is the loss, and its derivative is
backpropagation's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.feedback import broadcast_signal, feedback_signal, positions_key
from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored, Gradients
from rootlet_server.compiler.rules.site_gradients import add_site, head_outers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from rootlet_server.compiler.blocks import Point
    from rootlet_server.compiler.learner import Forward, Learner
    from rootlet_server.compiler.losses import LossTerms
    from rootlet_server.compiler.rules.credit import Batch

    Tensors = Mapping[str, Tensor]


def _surrogate(  # noqa: PLR0917 (a rule's arguments and two more)
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    batch: Batch,
    weights_N: Tensor,
    points: tuple[Point, ...],
    zeros: Tensors | None = None,
) -> tuple[Tensor, Forward, LossTerms]:
    """The surrogate [], and the pass it was made in."""
    tops: dict[str, Tensor] = {}

    def stop(name: str) -> Callable[[Tensor], Tensor]:
        def at_top(value: Tensor) -> Tensor:
            tops[name] = value
            return value.detach()

        return at_top

    at = {point.node: stop(point.node) for point in points}
    forward = learner.forward(frozen, adapter, batch.x, add=zeros, at=at)
    terms = loss_terms(learner.task, forward.output, batch.y)
    total = (terms.loss * weights_N).sum()
    if points:
        signal_NK = feedback_signal(learner, adapter, terms, batch.y, weights_N).detach()
    for point in points:
        delta = broadcast_signal(learner, point, frozen, signal_NK)
        if point.positions > 1 and delta.dim() == 2:
            v_P1 = frozen[positions_key(point.node)].to(delta.dtype).unsqueeze(-1)
            delta = delta.unsqueeze(1) * v_P1
        total = total + (delta * point.rows(tops[point.node])).sum()
    return total, forward, terms


def exact_gradients(  # noqa: PLR0917 (a rule's arguments and one more)
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    batch: Batch,
    weights_N: Tensor,
    points: tuple[Point, ...] = (),
) -> Gradients:
    """``d surrogate / d adapter``, summed over the batch."""

    def objective(trainable: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        total, _, terms = _surrogate(learner, frozen, trainable, batch, weights_N, points)
        return total, (terms.loss, terms.metric)

    by_name, (loss, metric) = torch.func.grad(objective, has_aux=True)(dict(adapter))
    return Gradients(loss=loss, metric=metric, by_name=by_name)


def exact_credit(  # noqa: PLR0917 (a rule's arguments and one more)
    learner: Learner,
    frozen: Tensors,
    adapter: Tensors,
    batch: Batch,
    weights_N: Tensor,
    points: tuple[Point, ...] = (),
) -> Factored:
    """The same gradients example by example, from the error at every site's output.

    The error is the derivative with respect to a zero that is added to the output; examples do
    not meet in the base, so each row of it belongs to one example.
    """

    def objective(zeros: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total, forward, terms = _surrogate(
            learner, frozen, adapter, batch, weights_N, points, zeros
        )
        values = {"loss": terms.loss, "metric": terms.metric, "error": terms.error}
        values["features"] = forward.features
        for node, tap in forward.taps.items():
            values[f"z {node}"] = tap.projected
            if tap.inputs is not None:
                values[f"h {node}"] = tap.inputs
        return total, values

    zeros = learner.zeros_at_sites(batch.x.shape[0])
    errors, values = torch.func.grad(objective, has_aux=True)(zeros)
    error_NK = values["error"] * weights_N.unsqueeze(1)
    outers = head_outers(learner.head, adapter, error_NK, values["features"])
    for site in learner.sites:
        delta = site.adapted(site.rows(errors[site.node]))
        h = values.get(f"h {site.node}")
        h = None if h is None else site.rows(h)
        add_site(outers, learner, site, adapter, delta, values[f"z {site.node}"], h)
    return Factored(loss=values["loss"], metric=values["metric"], outers=outers)
