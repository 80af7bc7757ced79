"""The model in segments that meet in one value each: what checkpointing keeps and recomputes.

A cut is a value that all credit from below it passes through, so that the segment above it can be
computed again from the cut alone, and from values that do not depend on what learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from rootlet_server.compiler.dominators import credits_of
from rootlet_server.compiler.interpret import base_product, evaluate_node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rootlet_server.compiler.interpret import Wrapper
    from rootlet_server.compiler.learner import Learner
    from rootlet_server.compiler.sites import Site
    from rootlet_server.compiler.trace import Program


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Nodes from one cut to the next, in graph order.

    Attributes:
        nodes: what is computed.
        start: name of the cut below; None for the lowest segment.
        end: name of the cut above, or of the output.
        sites: the sites in it.
        frozen_inputs: names of values from outside, other than the cut, that it reads.
    """

    nodes: tuple[fx.Node, ...]
    start: str | None
    end: str
    sites: tuple[Site, ...]
    frozen_inputs: tuple[str, ...]


def find_segments(program: Program, sites: tuple[Site, ...]) -> tuple[Segment, ...]:
    """As many segments as the root of the number of sites, where there are cuts for them.

    With s segments of n/s layers, s cuts and one segment's values are kept at a time: the least for
    s = sqrt(n) (Chen et al. 2016).
    """
    order = list(program.graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    dependent = _dependent(program, sites)
    cuts = _chosen(program, sites, position)
    output = program.node(program.output)
    starts = [None, *cuts]
    segments = []
    for start, end in zip(starts, [*cuts, output], strict=True):
        low = -1 if start is None else position[start]
        nodes = tuple(n for n in dependent if low < position[n] <= position[end])
        inside = {*nodes, start}
        outside = {
            used.name
            for node in nodes
            for used in node.all_input_nodes
            if used not in inside and isinstance(used.meta.get("val"), Tensor)
            if used.op != "placeholder" or used.name == program.x
        }
        segments.append(
            Segment(
                nodes=nodes,
                start=None if start is None else start.name,
                end=end.name,
                sites=tuple(s for s in sites if program.node(s.node) in nodes),
                frozen_inputs=tuple(sorted(outside)),
            )
        )
    return tuple(segments)


def _dependent(program: Program, sites: tuple[Site, ...]) -> list[fx.Node]:
    """Everything that the output needs and that depends on a site, in graph order."""
    names = {site.node for site in sites} | {program.output}
    below: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in names or below.intersection(node.all_input_nodes):
            below.add(node)
    return [n for n in needed_for(program.node(program.output)) if n in below]


def needed_for(end: fx.Node) -> list[fx.Node]:
    """The node and all that it is computed from, in graph order."""
    needed = {end}
    found = []
    for node in reversed(end.graph.nodes):
        if node in needed:
            found.append(node)
            needed.update(node.all_input_nodes)
    return found[::-1]


def _chosen(
    program: Program, sites: tuple[Site, ...], position: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """The first cut after each share of the sites."""
    credit = credits_of(program, sites)
    reach, cuts = -1, []
    for node in credit.order:
        if reach <= position[node] and isinstance(node.meta.get("val"), Tensor):
            cuts.append(node)
        reach = max(reach, *(position[user] for user in credit.users[node]), -1)
    number = math.isqrt(len(sites))
    shares = [len(sites) * k // number for k in range(1, number)] if number > 1 else []
    chosen: list[fx.Node] = []
    for share in shares:
        last = position[program.node(sites[share - 1].node)]
        cut = next((c for c in cuts if position[c] >= last and c.name != program.output), None)
        if cut is not None and cut not in chosen:
            chosen.append(cut)
    return chosen


def evaluate(
    learner: Learner,
    frozen: Mapping[str, Tensor],
    nodes: Iterable[fx.Node],
    env: dict[str, Any],
    wrap: Mapping[str, Wrapper],
) -> dict[str, Any]:
    """The values of ``nodes``, computed from those in ``env``, by name."""
    program = learner.program
    values = dict(env)

    def compute_node(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = base_product(node, program, frozen, args)
        return evaluate_node(node, args, kwargs, learner.float_dtype) if value is None else value

    for node in nodes:
        args = fx.node.map_arg(node.args, lambda n: values[n.name])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n.name])
        compute = partial(compute_node, node, args, kwargs)
        values[node.name] = wrap[node.name](args, compute) if node.name in wrap else compute()
    return values


def inputs_of(
    learner: Learner, frozen: Mapping[str, Tensor], x: Tensor, segments: tuple[Segment, ...]
) -> dict[str, Any]:
    """All values that do not depend on what learns."""
    program = learner.program
    env: dict[str, Any] = {}
    for node in program.graph.nodes:
        if node.name == program.x:
            env[node.name] = x
        elif node.op == "placeholder":
            env[node.name] = frozen.get(program.names.get(node.name, ""))
        elif node.name in program.batch_sizes:
            env[node.name] = x.shape[0]
    dependent = {node for segment in segments for node in segment.nodes}
    independent = [
        node
        for node in needed_for(program.node(program.output))
        if node not in dependent and node.name not in env and node.name not in program.skipped
    ]
    return evaluate(learner, frozen, independent, env, {})
