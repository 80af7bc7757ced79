"""What a ``.tflite`` may do on a device: an allow-list of operators, checked before it is loaded.

A model is refused when it is malformed; when an operator is a custom one or not on the allow-list
(control flow, random numbers, hash tables, variables and operators whose output's size depends on
values are not); when a tensor is sparse, of a dynamic shape, or longer or shorter than its buffer;
when an operator reads what nothing has written; and when its signatures are not those that the
manifest declares, tensor by tensor.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rootlet_runtime import tflite_tables as tables
from rootlet_runtime.errors import OperatorError
from rootlet_runtime.flatbuffer import FlatbufferError, Reader, Table
from rootlet_runtime.manifest import Manifest, TensorSpec

MAX_OPERATORS = 100_000
MAX_DIMENSIONS = 8
_ABSENT = -1  # an optional input that is left out
_CUSTOM = 32
_LIKE_INPUTS = {"next/": "", "grads/": "adapter/"}  # an output's prefix: its input's

Integers = npt.NDArray[np.signedinteger]


@dataclass(frozen=True)
class _Tensor:
    """A tensor's type, shape, and whether the file holds its values."""

    data_type: int
    shape: tuple[int, ...]
    constant: bool


@dataclass(frozen=True)
class _Subgraph:
    tensors: tuple[_Tensor, ...]
    inputs: frozenset[int]
    written: frozenset[int]


def signature_key(role: str, batch: int) -> str:
    """What the signature of a role for one size of batch is called: ``train_16``."""
    return f"{role}_{batch}"


def check_model(model: memoryview, manifest: Manifest) -> frozenset[str]:
    """Walks a LiteRT model and holds it against the manifest.

    Args:
        model: the bytes of ``model.tflite``.
        manifest: what the publisher declares; its ``litert`` is set.

    Returns:
        The names of the operators it uses.

    Raises:
        OperatorError: malformed, or asking for something that a bundle may not do.
    """
    if manifest.litert is None:
        raise OperatorError("the manifest declares no LiteRT model")
    try:
        return _Check(model, manifest, manifest.litert.batches).run()
    except (FlatbufferError, OperatorError) as error:
        raise OperatorError(f"{manifest.litert.file}: {error}") from error


class _Check:
    """One walk over one model."""

    def __init__(self, model: memoryview, manifest: Manifest, batches: Sequence[int]) -> None:
        self._reader = Reader(model)
        self._manifest = manifest
        self._batches = batches

    def run(self) -> frozenset[str]:
        reader = self._reader
        model = reader.table(reader.root(tables.IDENTIFIER), tables.MODEL, "model")
        if model.get("version") != tables.VERSION:
            raise OperatorError(f"schema {model.get('version')}; must be {tables.VERSION}")
        self._codes = [self._code(position) for position in model.get("operator_codes", ())]
        self._buffers = [
            len(reader.table(position, tables.BUFFER, "buffer").get("data", b""))
            for position in model.get("buffers", ())
        ]
        subgraphs = [self._subgraph(position) for position in model.get("subgraphs", ())]
        self._signatures(model.get("signature_defs", ()), subgraphs)
        return frozenset(name for name, _ in self._codes)

    def _code(self, position: int) -> tuple[str, int]:
        """An operator's name and the kind of its options."""
        found = self._reader.table(position, tables.OPERATOR_CODE, "operator code")
        # Codes above 127 did not fit the first field, which then holds 127: the larger one counts.
        code = max(found.get("deprecated_builtin_code", 0), found.get("builtin_code", 0))
        if "custom_code" in found or code == _CUSTOM:
            raise OperatorError(
                f"the custom operator {found.get('custom_code', '')!r}; only builtin ones are "
                "allowed"
            )
        if code not in tables.OPERATORS:
            raise OperatorError(f"the builtin operator {code} is not on the allow-list")
        return tables.OPERATORS[code]

    def _subgraph(self, position: int) -> _Subgraph:
        graph = self._reader.table(position, tables.SUBGRAPH, "subgraph")
        operators = graph.get("operators", ())
        if len(operators) > MAX_OPERATORS:
            raise OperatorError(f"{len(operators)} operators; the limit is {MAX_OPERATORS}")
        tensors = tuple(self._tensor(where) for where in graph.get("tensors", ()))
        inputs = frozenset(_indices("input", graph.get("inputs", ()), len(tensors)))
        if any(tensors[index].constant for index in inputs):
            raise OperatorError("an input of a subgraph has a value of its own")
        known = {index for index, tensor in enumerate(tensors) if tensor.constant} | inputs
        for where in operators:
            self._operator(where, known, len(tensors))
        outputs = _indices("output", graph.get("outputs", ()), len(tensors))
        _written(outputs, known, "the subgraph's outputs")
        return _Subgraph(tensors, inputs, frozenset(known))

    def _tensor(self, position: int) -> _Tensor:
        found = self._reader.table(position, tables.TENSOR, "tensor")
        name, data_type = found.get("name", ""), found.get("type", 0)
        shape = tuple(int(size) for size in found.get("shape", ()))
        if data_type not in tables.ELEMENT_BYTES:
            raise OperatorError(f"the tensor {name!r} has data type {data_type}")
        if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape):
            raise OperatorError(f"the tensor {name!r} has the shape {list(shape)}")
        buffer = found.get("buffer", 0)
        if buffer >= len(self._buffers):
            raise OperatorError(
                f"the tensor {name!r} lies in buffer {buffer} of {len(self._buffers)}"
            )
        size = self._buffers[buffer]
        expected = math.prod(shape) * tables.ELEMENT_BYTES[data_type]
        if size not in (0, expected):
            raise OperatorError(
                f"the tensor {name!r} needs {expected} bytes and its buffer holds {size}"
            )
        if "quantization" in found:
            self._quantization(found["quantization"], name, shape)
        return _Tensor(data_type, shape, constant=size > 0)

    def _quantization(self, position: int, name: str, shape: tuple[int, ...]) -> None:
        found = self._reader.table(position, tables.QUANTIZATION, "quantization")
        scale, zero = found.get("scale", ()), found.get("zero_point", ())
        dimension = found.get("quantized_dimension", 0)
        if len(scale) == len(zero) and len(scale) <= 1:
            return
        fits = 0 <= dimension < len(shape) and len(scale) == len(zero) == shape[dimension]
        if not fits:
            raise OperatorError(
                f"the tensor {name!r} of shape {list(shape)} has {len(scale)} scales and "
                f"{len(zero)} zero points for its dimension {dimension}"
            )

    def _operator(self, position: int, known: set[int], tensors: int) -> None:
        found = self._reader.table(position, tables.OPERATOR, "operator")
        index = found.get("opcode_index", 0)
        if index >= len(self._codes):
            raise OperatorError(f"an operator has the code {index} of {len(self._codes)}")
        name, expected = self._codes[index]
        self._options(found, name, expected)
        inputs = [i for i in found.get("inputs", ()) if i != _ABSENT]
        _written(_indices(f"{name}'s input", inputs, tensors), known, name)
        outputs = _indices(f"{name}'s output", found.get("outputs", ()), tensors)
        if not outputs or len(set(outputs)) != len(outputs) or known & set(outputs):
            raise OperatorError(f"{name} writes nothing, or what is already written")
        known.update(outputs)

    def _options(self, operator: Table, name: str, expected: int) -> None:
        kind = operator.get("builtin_options_type", 0)
        if kind not in (0, expected) or (kind != 0) != ("builtin_options" in operator):
            raise OperatorError(f"{name} carries options of the kind {kind}")
        if kind:
            self._reader.table(operator["builtin_options"], tables.OPTIONS[kind], name)

    def _signatures(self, positions: Iterable[int], subgraphs: Sequence[_Subgraph]) -> None:
        expected = {
            signature_key(role, batch): (role, batch)
            for role in self._manifest.graphs
            for batch in self._batches
        }
        used: dict[str, int] = {}
        for position in positions:
            found = self._reader.table(position, tables.SIGNATURE, "signature")
            key, index = found.get("signature_key", ""), found.get("subgraph_index", 0)
            if key not in expected or key in used:
                raise OperatorError(
                    f"the signature {key!r} is unknown or repeated; the manifest declares "
                    f"{sorted(expected)}"
                )
            if index >= len(subgraphs) or index in used.values():
                raise OperatorError(f"the signature {key!r} has the subgraph {index}")
            used[key] = index
            self._signature(found, *expected[key], subgraphs[index])
        if used.keys() != expected.keys() or len(subgraphs) != len(used):
            raise OperatorError(
                f"its {len(subgraphs)} subgraphs have the signatures {sorted(used)}; the manifest "
                f"declares {sorted(expected)}"
            )

    def _signature(self, found: Table, role: str, batch: int, graph: _Subgraph) -> None:
        spec = self._manifest.graphs[role]
        inputs, outputs = (self._names(found.get(end, ())) for end in ("inputs", "outputs"))
        for end, names, declared in (
            ("inputs", inputs, spec.inputs),
            ("outputs", outputs, spec.outputs),
        ):
            if names.keys() != set(declared):
                raise OperatorError(
                    f"{signature_key(role, batch)}: its {end} are {sorted(names)}; the manifest "
                    f"declares {sorted(declared)}"
                )
        if set(inputs.values()) != graph.inputs or len(graph.inputs) != len(inputs):
            raise OperatorError(f"{signature_key(role, batch)}: its inputs are not its subgraph's")
        if not graph.written.issuperset(outputs.values()):
            raise OperatorError(f"{signature_key(role, batch)}: an output is never written")
        ends = {name: (index, self._manifest.inputs[name]) for name, index in inputs.items()}
        ends |= {name: (index, _output(self._manifest, name)) for name, index in outputs.items()}
        for name, (index, tensor) in ends.items():
            _fits(name, graph.tensors[index], tensor, batch)

    def _names(self, positions: Iterable[int]) -> Mapping[str, int]:
        """Tensor indices by name; names that repeat are refused."""
        found: dict[str, int] = {}
        for position in positions:
            entry = self._reader.table(position, tables.TENSOR_MAP, "signature")
            name = entry.get("name", "")
            if name in found:
                raise OperatorError(f"a signature names {name!r} twice")
            found[name] = entry.get("tensor_index", 0)
        return found


def _output(manifest: Manifest, name: str) -> TensorSpec:
    """What an output is: shaped like an input, the predictions, or a single number."""
    for prefix, like in _LIKE_INPUTS.items():
        if name.startswith(prefix):
            return manifest.inputs[like + name.removeprefix(prefix)]
    shape = (None, manifest.num_outputs) if name == "output" else ()
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _fits(name: str, tensor: _Tensor, spec: TensorSpec, batch: int) -> None:
    expected = tuple(batch if size is None else size for size in spec.shape)
    if (tensor.data_type, tensor.shape) != (tables.DATA_TYPES[spec.dtype], expected):
        raise OperatorError(
            f"{name!r} has data type {tensor.data_type} and shape {list(tensor.shape)}; the "
            f"manifest declares {spec.dtype} {list(expected)}"
        )


def _indices(what: str, values: Iterable[int], tensors: int) -> list[int]:
    found = [int(value) for value in values]
    for index in found:
        if not 0 <= index < tensors:
            raise OperatorError(f"{what} is the tensor {index} of {tensors}")
    return found


def _written(indices: Iterable[int], known: set[int], who: str) -> None:
    for index in indices:
        if index not in known:
            raise OperatorError(f"{who}: the tensor {index} is read before it is written")
