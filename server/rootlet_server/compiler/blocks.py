"""Blocks of sites: feedback at the top of a block, exact credit inside it.

The sites are taken in graph order, from the head down, K at a time. The top of a block is the
nearest value that all credit of its sites passes through (their nearest common post-dominator): for
one site that is its feedback point, so K = 1 is direct feedback alignment; for a feed-forward layer
with a residual bypass it is the layer's output; for layers in sequence it is the last one's
feedback point. The block next to the head has no top: its credit comes exactly through the live
head, so one block of all sites is backpropagation.

Shape legend: N examples, P positions, C channels.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rootlet_server.compiler.attention_columns import NORMS, SOFTMAXES, query_key_columns
from rootlet_server.compiler.dominators import Credits, credits_of
from rootlet_server.compiler.interpret import CONVOLUTIONS
from rootlet_server.compiler.operators import BATCH_NORM, DIAGONAL
from rootlet_server.compiler.sites import Layout
from rootlet_server.compiler.trace import module_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rootlet_server.compiler.sites import Site
    from rootlet_server.compiler.trace import Program

aten = torch.ops.aten
ATTENTIONS = SOFTMAXES | {aten.scaled_dot_product_attention.default}
LAST = {aten.linear.default, aten.embedding.default} | NORMS


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value at which feedback arrives.

    Attributes:
        node: its name in the graph; names its feedback.
        module: path of the layer that computes it, for messages.
        layout: where the batch is.
        positions: P.
        columns: the channels [start, stop) that get feedback.
        sites: the sites below it whose credit comes from it, by node.
    """

    node: str
    module: str
    layout: Layout
    positions: int
    columns: tuple[int, int]
    sites: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of channels that get feedback."""
        return self.columns[1] - self.columns[0]

    def rows(self, value: Tensor) -> Tensor:
        """The value as [N, C] or [N, P, C], the columns with feedback."""
        rows = self.layout.by_example(self.layout.channels_last(value), self.positions)
        return rows[..., self.columns[0] : self.columns[1]]


def find_points(
    program: Program,
    sites: tuple[Site, ...],
    example: Tensor,
    block_size: int,
    merged: Sequence[int] = (),
) -> tuple[Point, ...]:
    """The tops of the blocks, from the input to the head; none if all credit is exact.

    Args:
        program: the traced model.
        sites: its sites.
        example: a small batch.
        block_size: K, the sites of a block.
        merged: indices of sites whose block is joined with the block above it.
    """
    if not sites or block_size >= len(sites):
        return ()
    credit = credits_of(program, sites)
    on_path = {node.name: node for node in credit.order}
    live = [site for site in sites if site.node in on_path]
    starts = _starts(program, credit, live, example)
    first = len(live) % block_size
    bounds = [0, *range(first or block_size, len(live), block_size), len(live)]
    groups = [list(range(a, b)) for a, b in pairwise(bounds)]
    for index in sorted(merged, reverse=True):
        groups = _join(groups, index)
    while len(groups) > 1:
        tops = [_top(program, credit, [starts[i] for i in group]) for group in groups[:-1]]
        bad = next((g[0] for g, top in zip(groups, tops, strict=False) if top is None), None)
        if bad is None:
            found = [top for top in tops if top is not None]
            reached = credit.first_reached({node for node, _ in found})
            bad = next((i for i, s in enumerate(live) if len(reached[on_path[s.node]]) > 1), None)
            if bad is None:
                return _points(program, live, found, reached, on_path)
        groups = _join(groups, bad)
    return ()


def _join(groups: list[list[int]], index: int) -> list[list[int]]:
    """Join the group that holds ``index`` with the one above it (the top one with that below)."""
    if len(groups) < 2:
        return groups
    at = next(i for i, group in enumerate(groups) if index in group)
    at = min(at, len(groups) - 2)
    return [*groups[:at], groups[at] + groups[at + 1], *groups[at + 2 :]]


def _starts(
    program: Program, credit: Credits, sites: list[Site], example: Tensor
) -> list[tuple[fx.Node, Site | None]]:
    """Where each site's credit may first be broken off, and the site if that is its own point.

    That is the feedback point, and past the softmax for attention's queries and keys.
    """
    queries = query_key_columns(program, example)
    result: list[tuple[fx.Node, Site | None]] = []
    for site in sites:
        columns = queries.get(site.node)
        node = program.node(site.chain.point)
        if columns is None or not bool(columns[site.columns[0] : site.columns[1]].any()):
            result.append((node, site))
            continue
        chain = credit.chain(node)
        past = [i for i, n in enumerate(chain) if n.target in ATTENTIONS]
        at = (past[0] + 1 if past else 0) if chain else 0
        if past and chain[past[0]].target is aten.scaled_dot_product_attention.default:
            at = past[0]
        result.append((chain[min(at, len(chain) - 1)], None))
    return result


def _top(
    program: Program, credit: Credits, starts: list[tuple[fx.Node, Site | None]]
) -> tuple[fx.Node, Site | None] | None:
    """The nearest common post-dominator whose channels can be told; None if there is none."""
    own = {node: site for node, site in starts if site is not None}
    for node in credit.common(node for node, _ in starts):
        if node.name == program.output:
            return None
        if node in own or _layout(program, node) is not None:
            return node, own.get(node)
    return None


def _points(
    program: Program,
    sites: list[Site],
    tops: list[tuple[fx.Node, Site | None]],
    reached: dict[fx.Node, frozenset[fx.Node | None]],
    on_path: dict[str, fx.Node],
) -> tuple[Point, ...]:
    points = {}
    for node, own in tops:
        below = tuple(s.node for s in sites if reached[on_path[s.node]] == {node})
        if own is not None and len(below) == 1:  # only the columns that this site adapts
            layout, positions, columns = own.layout, own.positions, own.columns
        else:
            found = (own.layout, own.out_features) if own is not None else _layout(program, node)
            assert found is not None  # noqa: S101 - _top chose it for having one
            layout, columns = found[0], (0, found[1])
            positions = own.positions if own is not None else _positions(node, found)
        if below:
            points[node] = Point(
                node=node.name, module=module_path(node) or node.name, layout=layout,
                positions=positions, columns=columns, sites=below,
            )  # fmt: skip
    return tuple(points.values())


def _positions(node: fx.Node, found: tuple[Layout, int]) -> int:
    total = 1
    for size in node.meta["val"].shape:
        total *= 1 if isinstance(size, torch.SymInt) else int(size)
    return total // found[1]


def _layout(program: Program, node: fx.Node) -> tuple[Layout, int] | None:
    """Where batch and channels are, and how many channels; None where that cannot be told."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    shape: tuple[Any, ...] = tuple(value.shape)
    batch = program.node(program.x).meta["val"].shape[0].node.expr
    symbolic = [d for d, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if len(symbolic) != 1 or shape[symbolic[0]].node.expr != batch:
        return None
    last = _channels_last(node)
    if len(shape) == 2 and symbolic == [0]:
        last = True
    if last is None or (not last and symbolic != [0]) or (last and symbolic == [len(shape) - 1]):
        return None
    channels = int(shape[-1] if last else shape[1])
    return Layout(channels_first=not last, batch_dim=symbolic[0]), channels


def _channels_last(node: fx.Node) -> bool | None:
    """From the layers that compute or read a value: are its channels last, or first?"""
    for user in node.users:
        if user.target in LAST and user.args[0] is node:
            return True
        if user.target in CONVOLUTIONS and user.args[0] is node:
            return False
    stack: list[Any] = [node]
    seen: set[fx.Node] = set()
    while stack:
        here = stack.pop()
        if here in seen or here.op != "call_function":
            continue
        seen.add(here)
        if here.target in LAST:
            return True
        if here.target in CONVOLUTIONS or here.target is BATCH_NORM:
            return False
        if here.target in DIAGONAL or here.target is operator.getitem:
            stack += here.all_input_nodes
    return None
