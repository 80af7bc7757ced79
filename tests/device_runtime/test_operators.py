"""The walker against onnx's own writer, and against arbitrary bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from rootlet_runtime import Bundle, GraphSpec, Manifest, TensorSpec
from rootlet_runtime.errors import OperatorError
from rootlet_runtime.operators import ALLOWED_OPERATORS, MAX_OPSET, check_graph

INPUTS = {"x": TensorSpec(name="x", dtype="float32", shape=(None,))}
SPEC = GraphSpec(file="predict.onnx", inputs=("x",), outputs=("y",))


def model(*nodes: Any, initializers: list[Any] | None = None) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B"]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], initializers or [])
    opsets = [helper.make_opsetid("", 20)]
    encoded: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=9
    ).SerializeToString()
    return encoded


def test_the_summary_is_what_the_graph_holds(bundle: Bundle) -> None:
    for role, spec in bundle.manifest.graphs.items():
        proto = onnx.load_from_string(bytes(bundle.entry(spec.file)))
        summary = bundle.summaries[role]
        assert summary.operators == {node.op_type for node in proto.graph.node}
        (tensor,) = summary.external
        assert (tensor.name, tensor.shape, tensor.offset, tensor.length) == ("P", (4, 6), 64, 96)


@pytest.mark.parametrize("operator", sorted(ALLOWED_OPERATORS))
def test_every_listed_operator_exists_in_onnx(operator: str) -> None:
    schema = onnx.defs.get_schema(operator, max_inclusive_version=MAX_OPSET)
    assert not any(a.type == onnx.defs.OpSchema.AttrType.GRAPH for a in schema.attributes.values())


@pytest.mark.parametrize(
    "operator",
    ["If", "Loop", "Scan", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial", "Dropout",
     "StringSplit", "ImageDecoder", "Optional", "Unheard", ""],
)  # fmt: skip
def test_unlisted_operators_are_refused_by_name(operator: str) -> None:
    with pytest.raises(OperatorError, match=f"'{operator}' is not on the allow-list"):
        check_graph(memoryview(model(helper.make_node(operator, ["x"], ["y"]))), SPEC, INPUTS, 0)


def test_every_kind_of_attribute_and_tensor_is_read() -> None:
    values = {"i": 3, "f": 1.5, "s": "text", "ints": [1, -2], "floats": [0.5], "strings": ["a"]}
    tensors = [
        onnx.numpy_helper.from_array(np.arange(3, dtype=dtype), f"t{dtype}")
        for dtype in ("f4", "f8", "i1", "u1", "i4", "i8", "f2")
    ]
    tensors += [helper.make_tensor("typed", kind, [2], [1, 0]) for kind in (1, 2, 6, 7, 9, 10)]
    node = helper.make_node("Relu", ["x"], ["y"], t=tensors[0], **values)
    assert (
        check_graph(memoryview(model(node, initializers=tensors)), SPEC, INPUTS, 0).external == ()
    )


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.COMPLEX64, 99])
def test_other_data_types_are_refused(kind: int) -> None:
    tensor = TensorProto(name="t", data_type=kind, dims=[0])
    raw = model(helper.make_node("Relu", ["x"], ["y"]), initializers=[tensor])
    with pytest.raises(OperatorError, match="data type"):
        check_graph(memoryview(raw), SPEC, INPUTS, 0)


def test_a_tensor_of_a_million_dimensions_costs_nothing() -> None:
    """Their product alone, of numbers of a million words, would take hours."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[2**62] * 1_000_000)
    tensor.data_location = TensorProto.EXTERNAL
    raw = model(helper.make_node("Relu", ["x"], ["y"]), initializers=[tensor])
    with pytest.raises(OperatorError, match="more than 16 dimensions"):
        check_graph(memoryview(raw), SPEC, INPUTS, 0)


def test_the_same_field_twice_is_refused() -> None:
    """Protobuf takes the last op_type: a reader that took the first would see another graph."""
    node = helper.make_node("Relu", ["x"], ["y"]).SerializeToString()
    twice = node + helper.make_node("Loop", [], []).SerializeToString()
    good = model(helper.make_node("Relu", ["x"], ["y"]))
    proto = onnx.load_from_string(good)
    del proto.graph.node[:]
    graph = proto.graph.SerializeToString() + b"\x0a" + bytes([len(twice)]) + twice
    head = onnx.ModelProto(ir_version=9, opset_import=proto.opset_import).SerializeToString()
    raw = head + b"\x3a" + bytes([len(graph)]) + graph
    assert onnx.load_from_string(raw).graph.node[0].op_type == "Loop"
    with pytest.raises(OperatorError, match="op_type appears twice"):
        check_graph(memoryview(raw), SPEC, INPUTS, 0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x08", "truncated"),
        (b"\x08" + b"\xff" * 11, "64 bits"),
        (b"\x3a\xff\x01", "255 bytes"),
        (b"\x3b", "wire type 3"),
        (b"\x09" + bytes(8), "wire type 1"),
        (b"\xff\xff\xff\xff\x7f", "not allowed"),
        (b"\x00", "not allowed"),
        (b"\xca\x01\x00", "field 25 is not allowed"),
    ],
)
def test_malformed_bytes_are_named(raw: bytes, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        check_graph(memoryview(raw), SPEC, INPUTS, 0)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(OperatorError):
        check_graph(memoryview(raw), SPEC, INPUTS, 0)


@given(data=st.data())
@settings(suppress_health_check=list(HealthCheck))
def test_a_damaged_graph_is_read_as_onnx_reads_it_or_refused(
    data: st.DataObject, tiny: Callable[[str], tuple[Manifest, dict[str, bytes]]]
) -> None:
    """Whatever the walker accepts holds, to onnx's parser too, only what the walker saw."""
    manifest, files = tiny("adam")
    raw = bytearray(files["train.onnx"])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        summary = check_graph(
            memoryview(bytes(raw)), manifest.graphs["train"], manifest.inputs, 160
        )
        proto = onnx.load_from_string(bytes(raw))
    except (OperatorError, DecodeError):
        return
    assert {node.op_type for node in proto.graph.node} == summary.operators <= ALLOWED_OPERATORS
    assert all(node.domain in ("", "ai.onnx") for node in proto.graph.node)
    assert not proto.functions
    places = {entry.value for t in proto.graph.initializer for entry in t.external_data
              if entry.key == "location"}  # fmt: skip
    assert places <= {"base.bin"}
