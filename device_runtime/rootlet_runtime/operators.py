"""What a graph may do on a device: an allow-list of operators, checked before it is loaded.

A graph is refused when a node is of another domain than ONNX's own, of an operator that is not
listed here, or carries a subgraph; when it defines functions; when a tensor lies outside
``base.bin`` or outside its bounds; and when its inputs and outputs are not those that the manifest
declares. Control flow (If, Loop, Scan) and random operators are left out: a step takes the time and
gives the result that its shapes say.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rootlet_runtime import onnx_tables, wire
from rootlet_runtime.errors import OperatorError
from rootlet_runtime.manifest import BASE_FILE, GraphSpec, TensorSpec

MIN_OPSET, MAX_OPSET = 17, 24
MIN_IR, MAX_IR = 8, 13
MAX_NODES = 100_000
MAX_DIMENSIONS = 16
ONNX_DOMAINS = ("", "ai.onnx")

ALLOWED_OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Celu Clip Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh
    CumSum DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp
    Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax
    Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul
    Neg NegativeLogLikelihoodLoss NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul
    QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence Round ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth
    Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
    Where Xor
    """.split()  # noqa: SIM905 - one name a line would hide the list
)

_EXTERNAL = 1


@dataclass(frozen=True)
class ExternalTensor:
    """A stored tensor that lies in ``base.bin``."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class GraphSummary:
    """What the check read on its way."""

    operators: frozenset[str]
    external: tuple[ExternalTensor, ...]


def check_graph(
    model: memoryview, spec: GraphSpec, inputs: Mapping[str, TensorSpec], base_bytes: int
) -> GraphSummary:
    """Walks a ``ModelProto``.

    Args:
        model: the bytes of the graph's file.
        spec: what the manifest says of it.
        inputs: what the manifest says of each input, by name.
        base_bytes: the size of ``base.bin``.

    Raises:
        OperatorError: malformed, or asking for something that a bundle may not do.
    """
    try:
        graph = _check_model(model)
        return _check_graph(graph, spec, inputs, base_bytes)
    except (wire.WireError, OperatorError) as error:
        raise OperatorError(f"{spec.file}: {error}") from error


def _check_model(model: memoryview) -> memoryview:
    graph: memoryview | None = None
    ir_version, opset = 0, 0
    for name, value in wire.read(model, onnx_tables.MODEL, "model"):
        if name == "graph" and isinstance(value, memoryview):
            graph = value
        elif name == "ir_version":
            ir_version = wire.integer(value)
        elif name == "opset_import" and isinstance(value, memoryview):
            opset = max(opset, _opset(value))
    if graph is None:
        raise OperatorError("holds no graph")
    if not MIN_IR <= ir_version <= MAX_IR:
        raise OperatorError(f"IR version {ir_version}; must lie in {MIN_IR}..{MAX_IR}")
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise OperatorError(f"opset {opset}; must lie in {MIN_OPSET}..{MAX_OPSET}")
    return graph


def _opset(message: memoryview) -> int:
    fields = dict(wire.read(message, onnx_tables.OPSET, "opset_import"))
    domain = wire.text(fields.get("domain", memoryview(b"")), "opset domain")
    if domain not in ONNX_DOMAINS:
        raise OperatorError(f"imports the operator domain {domain!r}; only ONNX's own is allowed")
    return wire.integer(fields.get("version", 0))


def _check_graph(
    graph: memoryview, spec: GraphSpec, inputs: Mapping[str, TensorSpec], base_bytes: int
) -> GraphSummary:
    operators: set[str] = set()
    external: list[ExternalTensor] = []
    ends: dict[str, list[tuple[str, memoryview]]] = {"input": [], "output": []}
    nodes = 0
    for name, value in wire.read(graph, onnx_tables.GRAPH, "graph"):
        if not isinstance(value, memoryview):
            continue
        if name == "node":
            nodes += 1
            operators.add(_check_node(value))
        elif name == "initializer":
            external.extend(_check_tensor(value, base_bytes))
        elif name in ends:
            ends[name].append(_named_type(value, name))
    if nodes > MAX_NODES:
        raise OperatorError(f"{nodes} nodes; the limit is {MAX_NODES}")
    for name, declared in (("input", spec.inputs), ("output", spec.outputs)):
        found = [end for end, _ in ends[name]]
        if tuple(found) != declared:
            raise OperatorError(
                f"its {name}s are {found}, but the manifest declares {list(declared)}"
            )
    for name, tensor_type in ends["input"]:
        _check_type(name, tensor_type, inputs[name])
    return GraphSummary(frozenset(operators), tuple(external))


def _named_type(value: memoryview, kind: str) -> tuple[str, memoryview]:
    name, tensor_type = "", memoryview(b"")
    for key, field in wire.read(value, onnx_tables.VALUE, kind):
        if key == "name":
            name = wire.text(field, kind)
        elif key == "type" and isinstance(field, memoryview):
            types = dict(wire.read(field, onnx_tables.TYPE, kind))
            tensor_type = _message(types.get("tensor_type"))
    return name, tensor_type


def _check_type(name: str, tensor_type: memoryview, spec: TensorSpec) -> None:
    """The input's data type and shape are the manifest's; ``None`` there is open here."""
    fields = dict(wire.read(tensor_type, onnx_tables.TENSOR_TYPE, name))
    data_type = wire.integer(fields.get("elem_type", 0))
    shape: list[int | None] = []
    for _, dimension in wire.read(_message(fields.get("shape")), onnx_tables.SHAPE, name):
        size = dict(wire.read(_message(dimension), onnx_tables.DIMENSION, name)).get("dim_value")
        shape.append(None if size is None else wire.integer(size))
    if data_type != onnx_tables.DATA_TYPES[spec.dtype] or tuple(shape) != spec.shape:
        raise OperatorError(
            f"its input {name!r} has data type {data_type} and shape {shape}; the manifest "
            f"declares {spec.dtype} {list(spec.shape)}"
        )


def _message(value: wire.Value | None) -> memoryview:
    return value if isinstance(value, memoryview) else memoryview(b"")


def _check_node(node: memoryview) -> str:
    op_type, domain = "", ""
    for name, value in wire.read(node, onnx_tables.NODE, "node"):
        if name == "op_type":
            op_type = wire.text(value, name)
        elif name == "domain":
            domain = wire.text(value, name)
        elif name == "attribute" and isinstance(value, memoryview):
            _check_attribute(value)
    if domain not in ONNX_DOMAINS:
        raise OperatorError(f"{op_type} is of the domain {domain!r}; only ONNX's own is allowed")
    if op_type not in ALLOWED_OPERATORS:
        raise OperatorError(f"the operator {op_type!r} is not on the allow-list")
    return op_type


def _check_attribute(attribute: memoryview) -> None:
    for name, value in wire.read(attribute, onnx_tables.ATTRIBUTE, "attribute"):
        if name == "t" and isinstance(value, memoryview) and list(_check_tensor(value, 0)):
            raise OperatorError("an attribute refers to external data")


def _check_tensor(tensor: memoryview, base_bytes: int) -> Iterator[ExternalTensor]:
    name, data_type, location = "", 0, 0
    shape: list[int] = []
    entries: list[memoryview] = []
    for key, value in wire.read(tensor, onnx_tables.TENSOR, "tensor"):
        if key == "name":
            name = wire.text(value, key)
        elif key == "dims":
            shape.append(wire.integer(value))
            if len(shape) > MAX_DIMENSIONS:  # each takes memory here, and time in the product
                raise OperatorError(
                    f"the tensor {name!r} has more than {MAX_DIMENSIONS} dimensions"
                )
        elif key == "data_type":
            data_type = wire.integer(value)
        elif key == "data_location":
            location = wire.integer(value)
        elif key == "external_data" and isinstance(value, memoryview):
            entries.append(value)
    halves = data_type == onnx_tables.INT4 and math.prod(shape) % 2 == 0
    element_bytes = 1 if halves else onnx_tables.ELEMENT_BYTES.get(data_type, 0)
    if not element_bytes or any(size < 0 for size in shape):
        raise OperatorError(f"the tensor {name!r} has data type {data_type} and shape {shape}")
    if location == _EXTERNAL:
        length = math.prod(shape) * element_bytes // (2 if halves else 1)
        offset = _check_location(name, entries, length, base_bytes)
        if offset % element_bytes:
            raise OperatorError(
                f"the tensor {name!r} lies at {offset}, across an element's boundary"
            )
        yield ExternalTensor(name, data_type, tuple(shape), offset, length)
    elif location != 0 or entries:
        raise OperatorError(f"the tensor {name!r} is both inline and external")


def _check_location(name: str, entries: list[memoryview], length: int, base_bytes: int) -> int:
    found: dict[str, str] = {}
    for entry in entries:
        fields = dict(wire.read(entry, onnx_tables.ENTRY, "external_data"))
        key = wire.text(fields.get("key", memoryview(b"")), "external_data key")
        if key in found or key not in ("location", "offset", "length", "checksum"):
            raise OperatorError(f"the tensor {name!r} repeats or adds the external key {key!r}")
        found[key] = wire.text(fields.get("value", memoryview(b"")), key)
    if found.get("location") != BASE_FILE:
        raise OperatorError(
            f"the tensor {name!r} lies in {found.get('location')!r}; only {BASE_FILE!r} is allowed"
        )
    offset, declared = (_decimal(name, found.get(key)) for key in ("offset", "length"))
    if declared != length or offset + length > base_bytes:
        raise OperatorError(
            f"the tensor {name!r} needs {length} bytes and declares {declared} at offset {offset}; "
            f"{BASE_FILE} has {base_bytes}"
        )
    return offset


def _decimal(name: str, digits: str | None) -> int:
    if digits is None or not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise OperatorError(f"the tensor {name!r} has the offset or length {digits!r}")
    return int(digits)
