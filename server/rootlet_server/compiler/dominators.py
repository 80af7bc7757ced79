"""Which values of a traced model all credit of a site has to pass through.

A node post-dominates a site if every way from the site to the output leads through it. Only values
that can carry a derivative count: float tensors that depend on a site and reach the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, fx

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from rootlet_server.compiler.sites import Site
    from rootlet_server.compiler.trace import Program


@dataclass(frozen=True)
class Credits:
    """The part of the graph that carries credit.

    Attributes:
        order: its nodes in graph order.
        users: node -> those of its users that are in it.
        above: node -> its nearest post-dominator; the output has none.
    """

    order: tuple[fx.Node, ...]
    users: Mapping[fx.Node, tuple[fx.Node, ...]]
    above: Mapping[fx.Node, fx.Node | None]

    def chain(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The node and all its post-dominators, the nearest first."""
        found: list[fx.Node] = []
        here: fx.Node | None = node
        while here is not None:
            found.append(here)
            here = self.above[here]
        return tuple(found)

    def common(self, nodes: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """What post-dominates (or is) every one of ``nodes``, the nearest first."""
        chains = [self.chain(node) for node in nodes]
        shared = set(chains[0]).intersection(*chains[1:])
        return tuple(node for node in chains[0] if node in shared)

    def first_reached(self, stops: Collection[fx.Node]) -> dict[fx.Node, frozenset[fx.Node | None]]:
        """Node -> the stops that its credit can come from first; None is the loss."""
        reached: dict[fx.Node, frozenset[fx.Node | None]] = {}
        for node in reversed(self.order):
            if node in stops:
                reached[node] = frozenset({node})
            elif not self.users[node]:
                reached[node] = frozenset({None})
            else:
                reached[node] = frozenset().union(*(reached[user] for user in self.users[node]))
        return reached


def credits_of(program: Program, sites: tuple[Site, ...]) -> Credits:
    """The graph between the sites and the output."""
    names = {site.node for site in sites}
    below: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in names or (below.intersection(node.all_input_nodes) and _is_float(node)):
            below.add(node)
    output = program.node(program.output)
    needed: set[fx.Node] = {output}
    order = []
    for node in reversed(program.graph.nodes):
        if node in below and node in needed:
            order.append(node)
            needed.update(node.all_input_nodes)
    members = set(order)
    users = {node: tuple(user for user in node.users if user in members) for node in order}
    users[output] = ()
    return Credits(tuple(reversed(order)), users, _post_dominators(order, users))


def _is_float(node: fx.Node) -> bool:
    """Whether it is a float tensor, or several tensors of which a getitem takes one."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return bool(value.is_floating_point())
    return isinstance(value, tuple | list)


def _post_dominators(
    reversed_order: list[fx.Node], users: Mapping[fx.Node, tuple[fx.Node, ...]]
) -> dict[fx.Node, fx.Node | None]:
    above: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}
    for node in reversed_order:
        meeting: fx.Node | None = None
        for user in users[node]:
            meeting = user if meeting is None else _meet(meeting, user, above, depth)
        above[node] = meeting
        depth[node] = 0 if meeting is None else depth[meeting] + 1
    return above


def _meet(
    a: fx.Node, b: fx.Node, above: Mapping[fx.Node, fx.Node | None], depth: Mapping[fx.Node, int]
) -> fx.Node:
    while a is not b:
        deeper, other = (a, b) if depth[a] >= depth[b] else (b, a)
        up = above[deeper]
        assert up is not None  # noqa: S101 - only the output has none, and it is the shallowest
        a, b = other, up
    return a
