"""The constants of a checked ONNX graph: what they are, and the same graph with others.

For graphs that :func:`rootlet_runtime.operators.check_graph` has passed. Only the bytes of the
graph are copied; the base that it refers to is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rootlet_runtime import onnx_tables, wire

# Data types (TensorProto.DataType) of the constants that may be exchanged.
DTYPES = {"float32": 1, "int8": 3}
_NUMBERS = {
    id(table): {field.name: number for number, field in table.items()}
    for table in (onnx_tables.MODEL, onnx_tables.GRAPH, onnx_tables.TENSOR)
}


@dataclass(frozen=True)
class Constant:
    """A constant's data type (TensorProto.DataType) and shape."""

    data_type: int
    shape: tuple[int, ...]


def constants(model: memoryview) -> dict[str, Constant]:
    """Every constant of a graph, by name; those inside nodes are left out."""
    found = {}
    for field, value in wire.read(_graph(model), onnx_tables.GRAPH, "graph"):
        if field == "initializer" and isinstance(value, memoryview):
            name, constant = _constant(value)
            found[name] = constant
    return found


def with_constants(model: memoryview, values: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The same graph with some constants exchanged; they lie in the graph itself then."""
    graph = bytearray()
    for field, value in wire.read(_graph(model), onnx_tables.GRAPH, "graph"):
        if field == "initializer" and isinstance(value, memoryview):
            name, _ = _constant(value)
            if name in values:
                value = memoryview(_tensor(name, values[name]))  # noqa: PLW2901
        graph += _encoded(onnx_tables.GRAPH, field, value)
    result = bytearray()
    for field, value in wire.read(model, onnx_tables.MODEL, "model"):
        whole = memoryview(bytes(graph)) if field == "graph" else value
        result += _encoded(onnx_tables.MODEL, field, whole)
    return bytes(result)


def _graph(model: memoryview) -> memoryview:
    fields = dict(wire.read(model, onnx_tables.MODEL, "model"))
    graph = fields["graph"]
    return graph if isinstance(graph, memoryview) else memoryview(b"")


def _constant(tensor: memoryview) -> tuple[str, Constant]:
    name, data_type = "", 0
    shape: list[int] = []
    for field, value in wire.read(tensor, onnx_tables.TENSOR, "tensor"):
        if field == "name":
            name = wire.text(value, field)
        elif field == "data_type":
            data_type = wire.integer(value)
        elif field == "dims":
            shape.append(wire.integer(value))
    return name, Constant(data_type, tuple(shape))


def _tensor(name: str, value: npt.NDArray[Any]) -> bytes:
    table = onnx_tables.TENSOR
    dims = b"".join(_encoded(table, "dims", size) for size in value.shape)
    little = value.astype(value.dtype.newbyteorder("<"))
    raw = memoryview(np.ascontiguousarray(little).tobytes())
    return b"".join(
        (
            dims,
            _encoded(table, "data_type", DTYPES[value.dtype.name]),
            _encoded(table, "name", memoryview(name.encode())),
            _encoded(table, "raw_data", raw),
        )
    )


def _encoded(table: wire.Table, field: str, value: wire.Value) -> bytes:
    number = _NUMBERS[id(table)][field]
    if isinstance(value, int):
        return _varint(number << 3 | wire.VARINT) + _varint(value)
    return _varint(number << 3 | wire.BYTES) + _varint(len(value)) + bytes(value)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
