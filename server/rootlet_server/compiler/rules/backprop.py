"""Backpropagation through the frozen base: the control arm.

Its cost is a second pass through every frozen weight and every layer's tensors kept in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored, Gradients
from rootlet_server.compiler.rules.site_gradients import add_site, head_outers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch

    Tensors = Mapping[str, Tensor]


def backprop_gradients(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Gradients:
    """``d (sum_n weights_n loss_n) / d adapter``, exactly."""

    def objective(trainable: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output = learner.forward(frozen, trainable, batch.x).output
        terms = loss_terms(learner.task, output, batch.y)
        return (terms.loss * weights_N).sum(), (terms.loss, terms.metric)

    by_name, (loss, metric) = torch.func.grad(objective, has_aux=True)(dict(adapter))
    return Gradients(loss=loss, metric=metric, by_name=by_name)


def backprop(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Factored:
    """The same gradients example by example, from the error at every site's output.

    The error is the derivative with respect to a zero that is added to the output; examples do
    not meet in the base, so each row of it belongs to one example.
    """

    def objective(zeros: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        forward = learner.forward(frozen, adapter, batch.x, add=zeros)
        terms = loss_terms(learner.task, forward.output, batch.y)
        values = {"loss": terms.loss, "metric": terms.metric, "error": terms.error}
        values["features"] = forward.features
        for node, tap in forward.taps.items():
            values[f"z {node}"] = tap.projected
            if tap.inputs is not None:
                values[f"h {node}"] = tap.inputs
        return (terms.loss * weights_N).sum(), values

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
