"""Backpropagation with gradient checkpointing (Chen et al. 2016): the rival on memory.

One value is kept for each segment of the model; a segment's other values are computed again when
the error arrives at its top, and one segment's are alive at a time. The gradient is
backpropagation's. As on phones by Apple's MeBP (arXiv 2510.03425), but as one inference graph.

A graph's optimisers would notice that the second pass computes what the first one did, and keep the
first one's values after all. So what a segment is computed from again is ``c + 0 delta``, with
delta an element of the error above: they cannot know that it is c, and it cannot be had earlier.

Shape legend: N examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.losses import loss_terms
from rootlet_server.compiler.rules.credit import Factored, Gradients
from rootlet_server.compiler.rules.site_gradients import add_site, head_outers
from rootlet_server.compiler.segments import evaluate, find_segments, inputs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.rules.credit import Batch
    from rootlet_server.compiler.segments import Segment

    Tensors = Mapping[str, Tensor]


def _behind(value: Any, delta: Tensor) -> Any:
    """The value, but not before delta is there."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value + 0.0 * delta.flatten()[0]


class _Passes:
    """The model's segments over one batch."""

    def __init__(self, learner: Learner, frozen: Tensors, batch: Batch, weights_N: Tensor) -> None:
        self.learner, self.frozen, self.batch, self.weights_N = learner, frozen, batch, weights_N
        self.segments = find_segments(learner.program, learner.sites)
        self.env = inputs_of(learner, frozen, batch.x, self.segments)

    def run(
        self,
        segment: Segment,
        cut: Tensor | None,
        adapter: Tensors,
        zeros: Tensors | None = None,
        behind: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The segment's top value, and its sites' taps by name."""
        env = dict(self.env)
        if segment.start is not None:
            env[segment.start] = cut
        if behind is not None:
            for name in (*segment.frozen_inputs, *([segment.start] if segment.start else [])):
                env[name] = _behind(env[name], behind)
        called = self.learner.wrappers(self.frozen, adapter, add=zeros)
        values = evaluate(self.learner, self.frozen, segment.nodes, env, called.wrap)
        self.env |= {
            node.name: values[node.name]
            for node in segment.nodes
            if not isinstance(node.meta.get("val"), Tensor | tuple | list)
        }
        taps = {}
        for node, tap in called.taps.items():
            taps[f"z {node}"] = tap.projected
            if tap.inputs is not None:
                taps[f"h {node}"] = tap.inputs
        if called.features:
            taps["features"] = called.features[0]
        return values[segment.end], taps

    def cuts(self, adapter: Tensors) -> list[Tensor | None]:
        """What each segment starts from."""
        cuts: list[Tensor | None] = [None]
        for segment in self.segments[:-1]:
            cuts.append(self.run(segment, cuts[-1], adapter)[0])
        return cuts

    def objective(self, output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and its terms."""
        terms = loss_terms(self.learner.task, output, self.batch.y)
        values = {"loss": terms.loss, "metric": terms.metric, "error": terms.error}
        return (terms.loss * self.weights_N).sum(), values


def _backward(
    passes: _Passes,
    cuts: list[Tensor | None],
    at: Callable[[Segment], dict[str, Tensor]],
    run: Callable[..., tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Derivatives with respect to ``at(segment)``, from the top segment down, and the values.

    Args:
        passes: the segments.
        cuts: what each starts from.
        at: what is differentiated in a segment.
        run: ``run(segment, cut, point, behind)``, the segment at a point.
    """
    gradients: list[dict[str, Tensor]] = []
    values: dict[str, Tensor] = {}
    delta: Tensor | None = None
    for segment, cut in zip(reversed(passes.segments), reversed(cuts), strict=True):

        def surrogate(
            point: dict[str, Tensor],
            cut: Tensor | None,
            segment: Segment = segment,
            delta: Tensor | None = delta,
        ) -> tuple[Tensor, dict[str, Tensor]]:
            top, taps = run(segment, cut, point, delta)
            if delta is None:
                total, terms = passes.objective(top)
                return total, taps | terms
            return (top * delta).sum(), taps

        if cut is None:
            found, seen = torch.func.grad(surrogate, has_aux=True)(at(segment), None)
        else:
            (found, delta), seen = torch.func.grad(surrogate, argnums=(0, 1), has_aux=True)(
                at(segment), cut
            )
        gradients.append(found)
        values |= seen
    return gradients, values


def checkpointed_gradients(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Gradients:
    """``d (sum_n weights_n loss_n) / d adapter``, exactly."""
    passes = _Passes(learner, frozen, batch, weights_N)
    head = f"{learner.head.module}."

    def at(segment: Segment) -> dict[str, Tensor]:
        own = tuple(f"{site.module}.lora_" for site in segment.sites)
        if segment is passes.segments[-1]:
            own = (*own, head)
        return {name: value for name, value in adapter.items() if own and name.startswith(own)}

    def run(
        segment: Segment, cut: Tensor | None, point: dict[str, Tensor], behind: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return passes.run(segment, cut, {**adapter, **point}, behind=behind)[0], {}

    found, values = _backward(passes, passes.cuts(adapter), at, run)
    by_name: dict[str, Tensor] = {}
    for gradients in found:  # a layer that is called twice may be in two segments
        for name, gradient in gradients.items():
            by_name[name] = by_name[name] + gradient if name in by_name else gradient
    return Gradients(
        loss=values["loss"],
        metric=values["metric"],
        by_name={name: by_name[name] for name in adapter},
    )


def checkpointed(
    learner: Learner, frozen: Tensors, adapter: Tensors, batch: Batch, weights_N: Tensor
) -> Factored:
    """The same gradients example by example, from the error at every site's output."""
    passes = _Passes(learner, frozen, batch, weights_N)
    zeros = learner.zeros_at_sites(batch.x.shape[0])

    def at(segment: Segment) -> dict[str, Tensor]:
        return {site.node: zeros[site.node] for site in segment.sites}

    def run(
        segment: Segment, cut: Tensor | None, point: dict[str, Tensor], behind: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return passes.run(segment, cut, adapter, point, behind)

    found, values = _backward(passes, passes.cuts(adapter), at, run)
    errors = {node: error for part in found for node, error in part.items()}
    error_NK = values["error"] * weights_N.unsqueeze(1)
    outers = head_outers(learner.head, adapter, error_NK, values["features"])
    for site in learner.sites:
        delta = site.adapted_rows(errors[site.node])
        h = values.get(f"h {site.node}")
        h = None if h is None else site.rows(h)
        add_site(outers, learner, site, adapter, delta, values[f"z {site.node}"], h)
    return Factored(loss=values["loss"], metric=values["metric"], outers=outers)
