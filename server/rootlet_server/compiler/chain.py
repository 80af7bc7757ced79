"""The feedback point of a site: the end of the elementwise chain that follows it.

After ``a = W h + b + s B A h`` usually comes an activation (perhaps with a frozen batch norm
before it). The chain ``g = f(a)`` is every operator that reads only ``a``, constants and other
members of the chain, position by position. Its Jacobian is diagonal, so one derivative of the
chain gives f'(a) whatever the activation: it is traced once, by torch's own differentiation, into
plain operators.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from rootlet_server.compiler.decompositions import export_decompositions, unlike
from rootlet_server.compiler.interpret import evaluate_node
from rootlet_server.compiler.operators import BATCH_NORM, DIAGONAL, IDENTITY

aten = torch.ops.aten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.compiler.trace import Program


@dataclass(frozen=True)
class Chain:
    """The way from a site to its feedback point.

    Attributes:
        point: name of the node at whose output the feedback matrix is calibrated.
        slope: f' on (a, parameters), of aten operators only; None where f' is one.
        parameters: names of the frozen tensors that f reads.
    """

    point: str
    slope: fx.GraphModule | None
    parameters: tuple[str, ...]

    def derivative(self, frozen: Mapping[str, Tensor], a: Tensor) -> Tensor | None:
        """f'(a), of a's shape; None where f' is one."""
        if self.slope is None:
            return None
        slope: Tensor = self.slope(a, *(frozen[name] for name in self.parameters))
        return slope if slope.dim() == a.dim() else slope.expand(a.shape)


def _trace_slope(
    program: Program, site: fx.Node, nodes: tuple[fx.Node, ...], names: tuple[str, ...]
) -> Any:
    """F' as a graph of aten operators on (a, parameters), or None where it is one.

    The Jacobian of f is diagonal, so the gradient of ``sum f(a)`` is f'(a).
    """

    def total(a: Tensor, *parameters: Tensor) -> Tensor:
        by_name = dict(zip(names, parameters, strict=True))
        env: dict[str, Any] = {site.name: a}

        def value(node: fx.Node) -> Any:
            return env[node.name] if node.name in env else by_name[program.names[node.name]]

        for node in nodes:
            args: Any = fx.node.map_arg(node.args, value)
            kwargs: Any = fx.node.map_arg(node.kwargs, value)
            env[node.name] = evaluate_node(node, args, kwargs, a.dtype)
        end: Tensor = env[nodes[-1].name]
        return end.sum()

    shape = site.meta["val"].shape
    batch = unlike(
        int(size)
        for sizes in (shape, *(program.tensors[name].shape for name in names))
        for size in sizes
        if not isinstance(size, torch.SymInt)
    )
    sizes = [batch if isinstance(size, torch.SymInt) else int(size) for size in shape]
    tracer = make_fx(
        torch.func.grad(total), tracing_mode="symbolic", decomposition_table=export_decompositions()
    )
    traced = tracer(torch.ones(sizes), *(program.tensors[name] for name in names))
    return _without_ones(traced)


def _without_ones(traced: fx.GraphModule) -> fx.GraphModule | None:
    """Take the incoming gradient of one out of the graph and the forward pass behind its shape."""
    graph = traced.graph
    ones = {
        n
        for n in graph.nodes
        if n.target is aten.ones_like.default and n.args[0].target is aten.sum.default
    }
    for node in list(graph.nodes):
        if node.target is aten.expand.default and node.args[0] in ones:
            ones.add(node)
        elif node.target is aten.mul.Tensor and ones.intersection(node.all_input_nodes):
            others = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and arg not in ones]
            if others:
                node.replace_all_uses_with(others[0])
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    if output in ones:
        return None
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        a = next(n for n in graph.nodes if n.op == "placeholder")
        one = graph.call_function(aten.new_ones.default, (a, []))  # of a's dtype
    for node in ones:
        node.replace_all_uses_with(one)
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _joins(node: fx.Node, members: set[fx.Node], program: Program, shape: tuple[Any, ...]) -> bool:
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return bool(node.args[0] in members and node.args[1] == 0)
    inputs = node.all_input_nodes
    if node.target not in DIAGONAL or not members.intersection(inputs):
        return False
    if any(n not in members and program.parameter(n) is None for n in inputs):
        return False
    value = node.meta.get("val")
    same_shape = isinstance(value, Tensor) and tuple(value.shape) == shape
    return node.target is BATCH_NORM or same_shape


def find_chain(program: Program, site: fx.Node) -> Chain:
    """The longest elementwise chain after ``site`` that has one end."""
    shape = tuple(site.meta["val"].shape)
    members: list[fx.Node] = []
    inside = {site}
    for node in program.graph.nodes:
        if _joins(node, inside, program, shape):
            members.append(node)
            inside.add(node)
    best: tuple[fx.Node, ...] = ()
    for end in range(len(members)):
        nodes = _needed(members[: end + 1], site)
        if members[end].target is not BATCH_NORM and _single_ended(site, nodes, members[end]):
            best = nodes
    names = tuple(
        dict.fromkeys(
            name for node in best for n in node.all_input_nodes if (name := program.parameter(n))
        )
    )
    slope = (
        _trace_slope(program, site, best, names)
        if any(n.target not in IDENTITY for n in best)
        else None
    )
    return Chain(point=best[-1].name if best else site.name, slope=slope, parameters=names)


def _needed(members: list[fx.Node], site: fx.Node) -> tuple[fx.Node, ...]:
    """The members that lead to the last of them."""
    needed = {members[-1]}
    for node in reversed(members):
        if node in needed:
            needed.update(n for n in node.all_input_nodes if n is not site)
    return tuple(n for n in members if n in needed)


def _single_ended(site: fx.Node, nodes: tuple[fx.Node, ...], end: fx.Node) -> bool:
    """Whether everything computed from the site leaves the chain through ``end``."""
    inside = set(nodes)
    return all(user in inside for node in (site, *nodes) if node is not end for user in node.users)
