"""Rewrites of an exported training graph that leave its meaning and take passes over memory out.

A step of gradient descent on a matrix is exported as three passes over it,

    g = d^T z        s = learning_rate g        p' = p - s

and becomes one product that accumulates, ``p' = p - d^T (learning_rate z)``, with the rate on the
narrower of the two factors.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable

RATE = "learning_rate"


def fuse_updates(model: onnx.ModelProto) -> None:
    """Turn ``p - learning_rate (d^T z)`` into one Gemm wherever the graph holds it."""
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    shapes = {value.name: _shape(value) for value in graph.input}
    dropped: list[onnx.NodeProto] = []
    for node in list(graph.node):
        update = _update(node, made, uses, shapes)
        if update is None:
            continue
        product, scaled, left, right = update
        out, inner = shapes[node.input[0]]
        narrow = f"{node.output[0]}/rated"
        factors = [narrow, right] if out < inner else [left, narrow]
        times = onnx.helper.make_node("Mul", [left if out < inner else right, RATE], [narrow])
        gemm = onnx.helper.make_node(
            "Gemm", [*factors, node.input[0]], list(node.output), alpha=-1.0, transA=1
        )
        place = list(graph.node).index(node)
        graph.node.insert(place, times)
        node.CopyFrom(gemm)
        dropped += [product, scaled]
    _drop(graph, dropped)


def _update(
    node: onnx.NodeProto,
    made: dict[str, onnx.NodeProto],
    uses: Counter[str],
    shapes: dict[str, tuple[int, ...]],
) -> tuple[onnx.NodeProto, onnx.NodeProto, str, str] | None:
    """(product, rated product, d, z) of a subtraction that is an update of a matrix."""
    if node.op_type != "Sub" or len(shapes.get(node.input[0], ())) != 2:
        return None
    scaled = made.get(node.input[1])
    if scaled is None or scaled.op_type != "Mul" or uses[node.input[1]] != 1:
        return None
    others = [name for name in scaled.input if name != RATE]
    product = made.get(others[0]) if len(others) == 1 else None
    if product is None or product.op_type != "MatMul" or uses[product.output[0]] != 1:
        return None
    turned = made.get(product.input[0])
    if turned is None or turned.op_type != "Transpose" or _perm(turned) != [1, 0]:
        return None
    return product, scaled, turned.input[0], product.input[1]


def _perm(node: onnx.NodeProto) -> list[int]:
    return [int(i) for a in node.attribute if a.name == "perm" for i in a.ints]


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _drop(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    for node in [n for n in graph.node if not used.intersection(n.output)]:
        graph.node.remove(node)
