"""The graph that ships, as a pure torch function: what a device runs is what is simulated.

A bundle's ``train`` and ``evaluate`` graphs are the compiler's pure step, exported. Read back as
functions of tensors they stack under ``torch.func.vmap``, and they travel to other processes and
machines as the bundle's own bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from rootlet_runtime.manifest import BASE_FILE
from rootlet_server.errors import NotVectorisableError
from rootlet_server.simulation.graph_operators import OPERATORS
from rootlet_server.simulation.graph_shapes import as_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_runtime.bundle import Bundle

LARGEST_SIZE = 64  # integers of at most one dimension and this many are sizes, not data
_INT64 = onnx.TensorProto.INT64


@dataclass(frozen=True)
class Node:
    """One operator: its attributes, and the names of its inputs and outputs."""

    operator: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TorchGraph:
    """A graph of a bundle as a function.

    Attributes:
        role: ``train``, ``evaluate``, ...
        nodes: in order.
        constants: stored tensors by name; sizes are numpy, the rest is torch.
        inputs, outputs: names in the order of the manifest.
    """

    role: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            values: a tensor for every input.

        Returns:
            The outputs by name.
        """
        env: dict[str, Any] = {**self.constants, **values, "": None}
        for node in self.nodes:
            compute = OPERATORS[node.operator]
            found = compute(node.attributes, *(env[name] for name in node.inputs))
            results = found if isinstance(found, tuple) else (found,)
            env.update(zip(node.outputs, results, strict=False))  # later ones may be left out
            for name in node.last_uses:
                del env[name]
        return {name: as_tensor(env[name]) for name in self.outputs}


def load_graph(bundle: Bundle, role: str) -> TorchGraph:
    """A graph of a verified bundle.

    Raises:
        NotVectorisableError: the bundle has no such graph, or the graph has an operator that this
            simulator does not know.
    """
    spec = bundle.manifest.graphs.get(role)
    if spec is None:
        raise NotVectorisableError(f"the bundle has no {role} graph; compile it anew")
    proto = onnx.load_from_string(bytes(bundle.entry(spec.file))).graph
    unknown = sorted({node.op_type for node in proto.node} - OPERATORS.keys() - {"Constant"})
    if unknown:
        raise NotVectorisableError(
            f"the {role} graph uses {', '.join(unknown)}, which the simulator cannot stack; "
            "simulate it one client at a time, by vectorise=False"
        )
    external = {each.name: each for each in bundle.summaries[role].external}
    base = bundle.entry(BASE_FILE)
    constants: dict[str, Any] = {}
    for tensor in proto.initializer:
        stored = onnx.TensorProto()
        stored.CopyFrom(tensor)
        if tensor.name in external:
            where = external[tensor.name]
            stored.ClearField("external_data")
            stored.data_location = onnx.TensorProto.DEFAULT
            stored.raw_data = bytes(base[where.offset : where.offset + where.length])
        constants[tensor.name] = _constant(onnx.numpy_helper.to_array(stored))
    for node in proto.node:
        if node.op_type == "Constant":
            (value,) = (onnx.helper.get_attribute_value(each) for each in node.attribute)
            is_tensor = isinstance(value, onnx.TensorProto)
            array = onnx.numpy_helper.to_array(value) if is_tensor else np.asarray(value)
            constants[node.output[0]] = _constant(array)
    nodes = _nodes([node for node in proto.node if node.op_type != "Constant"])
    return TorchGraph(
        role=role,
        nodes=with_last_uses(fused(nodes, constants), spec.outputs),
        constants=constants,
        inputs=spec.inputs,
        outputs=spec.outputs,
    )


def _constant(array: np.ndarray) -> Any:
    if array.dtype == np.int64 and array.ndim <= 1 and array.size <= LARGEST_SIZE:
        return array.copy()
    if array.dtype.kind == "V" or str(array.dtype) in ("int4", "uint4"):
        array = array.astype(np.int8)
    return torch.from_numpy(array.copy()).clone()  # torch's alignment: products repeat their bits


def _nodes(protos: list[onnx.NodeProto]) -> list[Node]:
    return [
        Node(
            operator=proto.op_type,
            attributes={each.name: _attribute(each) for each in proto.attribute},
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            last_uses=(),
        )
        for proto in protos
    ]


def fused(nodes: list[Node], constants: Mapping[str, Any]) -> list[Node]:
    """The derivative of a ReLU, ``where(x <= 0, 0, g)``, as the one operator that torch has."""
    compared = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.operator == "LessOrEqual" and _is_zero(constants.get(node.inputs[1]))
    }
    result = []
    for node in nodes:
        mask = node.inputs[0] if node.operator == "Where" else ""
        if mask in compared and _is_zero(constants.get(node.inputs[1])):
            inputs = (node.inputs[2], compared[mask])
            result.append(replace(node, operator="ReluGrad", inputs=inputs))
        else:
            result.append(node)
    return result


def with_last_uses(nodes: list[Node], outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """The nodes that somebody reads, each with the values that nobody reads after it."""
    produced = {name for node in nodes for name in node.outputs}
    seen = set(outputs) | {""}
    result = []
    for node in reversed(nodes):
        if not seen & set(node.outputs):
            continue
        used = dict.fromkeys((*node.inputs, *node.outputs))
        last = tuple(name for name in used if name not in seen and name in produced)
        seen |= used.keys()
        result.append(replace(node, last_uses=last))
    return tuple(reversed(result))


def _is_zero(constant: Any) -> bool:
    return isinstance(constant, Tensor) and constant.numel() == 1 and not constant.any()


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
