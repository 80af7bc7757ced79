"""Which output columns of a projection feed only attention's queries and keys.

The mean Jacobian says nothing useful there (a softmax does not change when all its keys shift), so
these columns get no adapter by default. Found from the graph, for any hand-written attention: the
operands of the product before a softmax are followed back to projections, and a packed projection
is told apart column by column by sending column numbers through the reshapes in the place of its
output.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.operators import DIAGONAL, SHAPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.compiler.trace import Program

aten = torch.ops.aten
SOFTMAXES = {aten.softmax.int, aten._softmax.default}
SCORES = {aten.matmul.default, aten.bmm.default, aten.einsum.default, aten.baddbmm.default}
NORMS = {aten.layer_norm.default, aten.rms_norm.default}
MOVES = SHAPE | {operator.getitem}
PASSED = DIAGONAL | MOVES | NORMS


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [
        n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), torch.SymInt | int)
    ]


def _ancestors(starts: list[fx.Node]) -> set[fx.Node]:
    """The nodes passed on the way back from ``starts`` to projections, both ends included."""
    found: set[fx.Node] = set()
    stack = list(starts)
    while stack:
        node = stack.pop()
        if node in found or node.op != "call_function":
            continue
        found.add(node)
        if node.target in PASSED:
            stack += _tensor_inputs(node)
    return found


def score_products(graph: fx.Graph) -> list[tuple[fx.Node, list[fx.Node]]]:
    """(consumer, its query and key operands) of every attention in the graph."""
    products = []
    for node in graph.nodes:
        if node.target is aten.scaled_dot_product_attention.default:
            products.append((node, list(node.args[:2])))
        elif node.target in SOFTMAXES:
            before = _ancestors([node.args[0]])
            products += [(n, _tensor_inputs(n)) for n in before if n.target in SCORES]
    return products


def query_key_columns(program: Program, example: Tensor) -> dict[str, Tensor]:
    """For each projection behind a query or key: bool [out], true where it feeds nothing else."""
    graph = program.graph
    operands: list[fx.Node] = []
    scores: set[tuple[fx.Node, fx.Node]] = set()
    for consumer, inputs in score_products(graph):
        operands += inputs
        scores |= {(consumer, n) for n in inputs}
    before = _ancestors(operands)
    projections = [n for n in before if n.target is aten.linear.default]
    return {n.name: _exclusive(program, n, before, scores, example) for n in projections}


def _exclusive(
    program: Program,
    projection: fx.Node,
    before: set[fx.Node],
    scores: set[tuple[fx.Node, fx.Node]],
    example: Tensor,
) -> Tensor:
    moved = {projection}
    for node in program.graph.nodes:
        if node.target in MOVES and moved.intersection(node.all_input_nodes):
            moved.add(node)
    values = _column_numbers(program, projection, moved, example)
    columns = int(projection.meta["val"].shape[-1])
    feeds_scores, feeds_others = (torch.zeros(columns, dtype=torch.bool) for _ in range(2))
    for node in moved:
        for user in node.users:
            if user in moved or not isinstance(values[node.name], Tensor):
                continue
            into_scores = user in before or (user, node) in scores
            (feeds_scores if into_scores else feeds_others)[values[node.name].long().flatten()] = (
                True
            )
    return feeds_scores & ~feeds_others


def _column_numbers(
    program: Program, projection: fx.Node, moved: set[fx.Node], example: Tensor
) -> dict[str, Tensor]:
    def numbers(_: Any, compute: Callable[[], Tensor]) -> Tensor:
        value = compute()
        return torch.arange(value.shape[-1], dtype=value.dtype).expand_as(value).clone()

    _, kept = run(
        program,
        program.tensors,
        example,
        wrap={projection.name: numbers},
        keep={n.name for n in moved},
    )
    return kept
