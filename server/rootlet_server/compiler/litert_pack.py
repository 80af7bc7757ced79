"""A converted LiteRT model as a bundle carries it: named, without notes, its int8 tensors in int8.

The converter folds ``q * scale`` into float32 constants. Here every large constant that is exactly
an int8 tensor times one scale, or times a scale for each slice of one dimension, is stored as that
int8 tensor before a DEQUANTIZE, which gives back the same float32 bits. Nothing is rounded: what
is not exact stays as it is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

PACKED_FROM_ELEMENTS = 256
TINIEST = 1e-30  # a slice of zeros has some scale
_FLOAT32, _INT8 = 0, 9
_DEQUANTIZE = 6
# The operator's versions that take int8 with one scale, and with a scale for each slice.
_BY_TENSOR, _BY_SLICE = 2, 5


def pack(content: bytes, names: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> bytes:
    """Rewrites a converted model.

    Args:
        content: what the converter wrote; inputs are called ``args_<i>``, outputs ``output_<i>``.
        names: signature key -> names of its inputs and of its outputs, in order.
    """
    import flatbuffers  # noqa: PLC0415
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    model.description = "rootlet"
    model.metadata, model.metadataBuffer = None, None
    for definition in model.signatureDefs:
        inputs, outputs = names[definition.signatureKey.decode()]
        for entries, ends in ((definition.inputs, inputs), (definition.outputs, outputs)):
            for entry in entries:
                entry.name = ends[int(entry.name.decode().rpartition("_")[2])]
    _store(model, schema)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _store(model: Any, schema: Any) -> None:
    """Gives every constant its buffer anew, in int8 where that is exact."""
    contents = [buffer.data for buffer in model.buffers]
    buffers = _Buffers(schema)
    for graph in model.subgraphs:
        graph.name = None
        packed = []
        for index, tensor in enumerate(list(graph.tensors)):
            tensor.name = None
            data = contents[tensor.buffer]
            found = None
            if data is not None and tensor.type == _FLOAT32:
                values = np.asarray(data, np.uint8).view("<f4")
                found = as_int8(values.reshape(() if tensor.shape is None else tensor.shape))
            if found is None:
                tensor.buffer = buffers.add(data)
                continue
            q, scale, dimension = found
            tensor.buffer = 0
            stored = _int8_tensor(schema, q, scale, dimension)
            stored.buffer = buffers.add(q.view(np.uint8).ravel())
            operator = schema.OperatorT()
            operator.opcodeIndex = _code(model, schema, len(scale))
            operator.inputs = np.array([len(graph.tensors)], np.int32)
            operator.outputs = np.array([index], np.int32)
            graph.tensors.append(stored)
            packed.append(operator)
        graph.operators = [*packed, *graph.operators]
    model.buffers = buffers.tables


def _int8_tensor(
    schema: Any, q: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], dimension: int
) -> Any:
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.hasRank = np.array(q.shape, np.int32), _INT8, True
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
    tensor.quantization.quantizedDimension = dimension
    return tensor


def as_int8(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], int] | None:
    """``(q, scale, dimension)`` with ``float32(q) * scale == values`` to the last bit, or None.

    ``scale`` has one entry, or one for each slice of ``dimension``. A slice's largest magnitude is
    127 of its scales, as ``quantize_weight`` leaves it; integers have the scale 1.
    """
    if values.size < PACKED_FROM_ELEMENTS or not np.isfinite(values).all():
        return None
    if np.abs(values).max() <= 127 and (np.rint(values) == values).all():
        return values.astype(np.int8), np.ones(1, np.float32), 0
    for dimension in range(values.ndim):
        others = tuple(d for d in range(values.ndim) if d != dimension)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = _scale(values, largest, others)
        if scale is not None:
            q = np.rint(values / scale).astype(np.int8)
            return q, scale.ravel(), dimension
    return None


def _scale(
    values: npt.NDArray[np.float32], largest: npt.NDArray[np.float32], others: tuple[int, ...]
) -> npt.NDArray[np.float32] | None:
    """A scale for each slice that gives its values back, if there is one.

    ``largest / 127`` may be one rounding away from the scale it came from, so its neighbours count.
    """
    best = np.zeros_like(largest)
    for scale in _candidates(np.maximum(largest, TINIEST).astype(np.float32) / np.float32(127)):
        q = np.clip(np.rint(values / scale), -127, 127).astype(np.float32)
        exact = (q * scale == values).all(axis=others, keepdims=True)
        best = np.where((best == 0) & exact, scale, best)
    return best if (best > 0).all() else None


def _candidates(scale: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float32]]:
    yield scale
    for target in (np.float32(0), np.float32(np.inf)):
        yield np.nextafter(scale, target)


class _Buffers:
    """The model's buffers: the first is empty, equal ones are stored once."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._places: dict[bytes, int] = {}
        self.tables: list[Any] = [schema.BufferT()]

    def add(self, data: Any) -> int:
        """The place of these bytes; 0 for none."""
        if data is None or len(data) == 0:
            return 0
        array = np.asarray(data, np.uint8)
        digest = hashlib.sha256(array.tobytes()).digest()
        if digest not in self._places:
            self._places[digest] = len(self.tables)
            buffer = self._schema.BufferT()
            buffer.data = array
            self.tables.append(buffer)
        return self._places[digest]


def _code(model: Any, schema: Any, scales: int) -> int:
    """The place of DEQUANTIZE in the model's list of operator codes; added if it is not there."""
    version = _BY_TENSOR if scales == 1 else _BY_SLICE
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == _DEQUANTIZE and code.version == version:
            return index
    added = schema.OperatorCodeT()
    added.builtinCode = added.deprecatedBuiltinCode = _DEQUANTIZE
    added.version = version
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1
