"""The walker over LiteRT models: against LiteRT's own schema, against damage, against forgeries."""

from dataclasses import replace

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet_runtime import Bundle, LitertSpec, write_bundle
from rootlet_runtime.errors import HashMismatchError, ManifestError, OperatorError
from rootlet_runtime.flatbuffer import Field, FlatbufferError, Reader
from rootlet_runtime.tflite_check import check_model
from rootlet_runtime.tflite_tables import OPERATORS, OPTIONS

BUILTIN = schema.BuiltinOperator
NAMES = {code: name for name, code in vars(BUILTIN).items() if not name.startswith("_")}


@pytest.fixture(scope="module")
def adam(make_files):
    manifest, files = make_files("adam")
    return manifest, files["model.tflite"]


def forge(adam, change):
    """The model with one thing changed, checked."""
    manifest, content = adam
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    change(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return check_model(memoryview(bytes(builder.Output())), manifest)


def test_what_the_converter_wrote_is_accepted(adam):
    manifest, content = adam
    found = check_model(memoryview(content), manifest)
    assert {"FULLY_CONNECTED", "TANH", "SOFTMAX"} <= found
    assert forge(adam, lambda model: None) == found


def test_the_tables_are_the_schemas():
    for code, (name, options) in OPERATORS.items():
        assert NAMES[code] == name
        assert options == 0 or options in OPTIONS


def test_the_options_fields_lie_where_the_schema_has_them():
    """Written by LiteRT's own writer with every field set, each options table is read whole."""
    kinds = {v: k for k, v in vars(schema.BuiltinOptions).items() if not k.startswith("_")}
    for kind, fields in OPTIONS.items():
        options = getattr(schema, f"{kinds[kind]}T")()
        values = list(vars(options))[: len(fields)]
        for name in values:
            now = getattr(options, name)
            setattr(options, name, np.array([1, 2], np.int32) if now is None else _other(now))
        builder = flatbuffers.Builder(0)
        builder.Finish(options.Pack(builder), file_identifier=b"TFL3")
        reader = Reader(memoryview(bytes(builder.Output())))
        found = reader.table(reader.root(b"TFL3"), fields, kinds[kind])
        assert len(found) == len(fields)
        for name, value in zip(values, found.values(), strict=True):
            np.testing.assert_array_equal(value, getattr(options, name))


def _other(value):
    return not value if isinstance(value, bool) else value + 1


def _first(model, *names):
    """The first operator of one of these names in the train graph."""
    return next(
        operator
        for operator in model.subgraphs[0].operators
        if NAMES[model.operatorCodes[operator.opcodeIndex].builtinCode] in names
    )


def _code(value):
    def change(model):
        model.operatorCodes[0].builtinCode = value
        model.operatorCodes[0].deprecatedBuiltinCode = min(value, 127)

    return change


@pytest.mark.parametrize(
    "name", ["WHILE", "IF", "CALL_ONCE", "CALL", "RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL",
             "MULTINOMIAL", "HASHTABLE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "WHERE",
             "UNIQUE", "STABLEHLO_SCATTER", "STABLEHLO_CUSTOM_CALL", "DELEGATE", "SVDF", "LSTM"],
)  # fmt: skip
def test_unlisted_operators_are_refused(adam, name):
    code = getattr(BUILTIN, name)
    with pytest.raises(OperatorError, match=rf"model.tflite: .*operator {code} is not on"):
        forge(adam, _code(code))


def test_a_custom_operator_is_refused_by_name(adam):
    def change(model):
        _code(BUILTIN.CUSTOM)(model)
        model.operatorCodes[0].customCode = "FlexMatMul"

    with pytest.raises(OperatorError, match="custom operator 'FlexMatMul'"):
        forge(adam, change)


def test_a_custom_code_behind_a_builtin_one_is_refused(adam):
    with pytest.raises(OperatorError, match="custom operator 'Hidden'"):
        forge(adam, lambda model: setattr(model.operatorCodes[0], "customCode", "Hidden"))


def _set(path, value):
    """A change of one attribute: ``subgraphs.0.tensors.0.shape``."""
    *steps, last = path.split(".")

    def change(model):
        target = model
        for step in steps:
            target = target[int(step)] if step.isdigit() else getattr(target, step)
        if last.isdigit():
            target[int(last)] = value
        else:
            setattr(target, last, value)

    return change


def _sparse(model):
    model.subgraphs[0].tensors[0].sparsity = schema.SparsityParametersT()


def _metadata(model):
    entry = schema.MetadataT()
    entry.name = "notes"
    model.metadata = [entry]


def _short_buffer(model):
    tensor = next(t for t in model.subgraphs[0].tensors if t.buffer)
    model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:-1]


def _quantised(scales, zeros, dimension=0):
    def change(model):
        parameters = schema.QuantizationParametersT()
        parameters.scale = np.ones(scales, np.float32)
        parameters.zeroPoint = np.zeros(zeros, np.int64)
        parameters.quantizedDimension = dimension
        model.subgraphs[0].tensors[0].quantization = parameters

    return change


def _wrong_options(model):
    operator = _first(model, "SUM", "FULLY_CONNECTED")
    operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions
    operator.builtinOptions = schema.WhileOptionsT()


def _read_early(model):
    model.subgraphs[0].operators.reverse()


def _written_twice(model):
    operators = model.subgraphs[0].operators
    operators[1].outputs = operators[0].outputs


def _written_constant(model):
    graph = model.subgraphs[0]
    constant = next(i for i, tensor in enumerate(graph.tensors) if tensor.buffer)
    graph.operators[0].outputs = np.array([constant], np.int32)


def _twice(model):
    model.signatureDefs[1] = model.signatureDefs[0]


def _one_name_twice(model):
    model.signatureDefs[0].inputs[1].name = model.signatureDefs[0].inputs[0].name


def _two_names_of_one_tensor(model):
    inputs = model.signatureDefs[0].inputs
    inputs[1].tensorIndex = inputs[0].tensorIndex


def _swapped_shapes(model):
    entries = {e.name: e for e in model.signatureDefs[0].inputs}
    x, y = entries[b"x"], entries[b"y"]
    x.tensorIndex, y.tensorIndex = y.tensorIndex, x.tensorIndex


def _dropped(model):
    del model.signatureDefs[-1], model.subgraphs[-1]


def _extra_subgraph(model):
    model.subgraphs.append(model.subgraphs[0])


def _graphs_swapped(model):
    first, second = model.signatureDefs[:2]
    first.subgraphIndex, second.subgraphIndex = second.subgraphIndex, first.subgraphIndex


FORGERIES = {
    "another schema": (_set("version", 4), "schema 4"),
    "a tensor outside the buffers": (_set("subgraphs.0.tensors.0.buffer", 9999), "buffer 9999 of"),
    "an unknown data type": (_set("subgraphs.0.tensors.0.type", 5), "data type 5"),
    "a negative size": (_set("subgraphs.0.tensors.0.shape", np.array([-1, 4], np.int32)), "shape"),
    "too many dimensions": (_set("subgraphs.0.tensors.0.shape", np.ones(9, np.int32)), "shape"),
    "a dynamic shape": (
        _set("subgraphs.0.tensors.0.shapeSignature", np.array([-1, 4], np.int32)),
        "tensor: field 7",
    ),
    "a variable": (_set("subgraphs.0.tensors.0.isVariable", True), "tensor: field 5"),
    "a sparse tensor": (_sparse, "tensor: field 6"),
    "metadata": (_metadata, "model: field 6"),
    "data outside the flatbuffer": (_set("buffers.1.offset", 64), "buffer: field 1"),
    "a short buffer": (_short_buffer, "needs .* bytes and its buffer holds"),
    "scales without zero points": (_quantised(2, 0), "2 scales and 0 zero points"),
    "scales of no dimension": (_quantised(2, 2, 7), "for its dimension 7"),
    "custom options": (_set("subgraphs.0.operators.0.customOptions", [1]), "operator: field 5"),
    "options of another operator": (_wrong_options, "carries options of the kind"),
    "an operator code outside the list": (
        _set("subgraphs.0.operators.0.opcodeIndex", 999),
        "the code 999 of",
    ),
    "an input outside the tensors": (
        _set("subgraphs.0.operators.0.inputs", np.array([99999], np.int32)),
        "tensor 99999 of",
    ),
    "a negative output": (
        _set("subgraphs.0.operators.0.outputs", np.array([-7], np.int32)),
        "tensor -7 of",
    ),
    "operators out of order": (_read_early, "read before it is written"),
    "a tensor written twice": (_written_twice, "already written"),
    "a constant overwritten": (_written_constant, "already written"),
    "no outputs": (_set("subgraphs.0.operators.0.outputs", np.array([], np.int32)), "nothing"),
    "a subgraph's output never written": (
        _set("subgraphs.0.outputs", np.array([99999], np.int32)),
        "tensor 99999",
    ),
    "a signature twice": (_twice, "unknown or repeated"),
    "an unknown signature": (_set("signatureDefs.0.signatureKey", "train_99"), "'train_99'"),
    "a missing signature": (_dropped, "the manifest declares"),
    "a subgraph without a signature": (_extra_subgraph, "the manifest declares"),
    "an input of another name": (_set("signatureDefs.0.inputs.0.name", "z"), "its inputs are"),
    "an output of another name": (_set("signatureDefs.0.outputs.0.name", "z"), "its outputs are"),
    "a name twice": (_one_name_twice, "twice"),
    "two names of one tensor": (_two_names_of_one_tensor, "not its subgraph's"),
    "x and y swapped": (_swapped_shapes, "the manifest declares (float32|int64)"),
    "an output outside the tensors": (
        _set("signatureDefs.0.outputs.0.tensorIndex", 99999),
        "never written",
    ),
    "a subgraph outside the list": (_set("signatureDefs.0.subgraphIndex", 99), "subgraph 99"),
    "batches swapped": (_graphs_swapped, "shape"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_refused(adam, forgery):
    change, message = FORGERIES[forgery]
    with pytest.raises(OperatorError, match=message):
        forge(adam, change)


def test_signatures_of_other_sizes_are_refused(adam):
    manifest, content = adam
    other = replace(manifest, litert=LitertSpec(file="model.tflite", batches=(1, 16)))
    with pytest.raises(OperatorError, match="'train_8'"):
        check_model(memoryview(content), other)


@pytest.mark.parametrize("batches", [(), (8, 1), (1, 1), tuple(range(1, 10))])
def test_impossible_batches_are_refused(batches):
    with pytest.raises(ManifestError, match=r"litert\.batches"):
        LitertSpec(file="model.tflite", batches=batches)


@pytest.mark.parametrize("batch", [0, 33])
def test_batches_beyond_the_bundles_are_refused(adam, batch):
    with pytest.raises(ManifestError, match=r"must lie in 1\.\.32"):
        replace(adam[0], litert=LitertSpec(file="model.tflite", batches=(batch,)))


@pytest.mark.parametrize("file", ["other.tflite", "../model.tflite", "train.onnx"])
def test_another_file_is_refused(file):
    with pytest.raises(ManifestError, match=r"litert\.file"):
        LitertSpec(file=file, batches=(1,))


def test_every_truncation_is_refused(adam):
    manifest, content = adam
    for size in (*range(0, 64), *range(64, len(content), 101), len(content) - 1):
        with pytest.raises(OperatorError):
            check_model(memoryview(content[:size]), manifest)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_model_is_read_as_the_schema_reads_it_or_refused(data, adam):
    """Whatever the walker accepts holds, to LiteRT's own reader too, only listed operators."""
    manifest, content = adam
    raw = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = check_model(memoryview(bytes(raw)), manifest)
    except OperatorError:
        return
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytes(raw)))
    assert {NAMES[c.builtinCode] for c in model.operatorCodes} == found
    assert all(c.customCode is None for c in model.operatorCodes)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_nothing_else(raw):
    reader = Reader(memoryview(raw[:4] + b"TFL3" + raw[4:]))
    fields = {0: Field("a", "i"), 1: Field("b", "tables"), 2: Field("c", "text")}
    try:
        found = reader.table(reader.root(b"TFL3"), fields, "model")
    except FlatbufferError:
        return
    assert found.keys() <= {"a", "b", "c"}


def test_references_without_end_are_refused():
    """A vector of a million references to one table takes little room and much time."""
    count = 400_000
    offsets = np.arange(count, 0, -1, dtype="<u4") * 4
    # root -> table at 16 (fields at 8) -> vector at 24 -> every element points behind the vector
    head = b"\x10\x00\x00\x00TFL3" + b"\x06\x00\x08\x00\x04\x00\x00\x00"
    table = (8).to_bytes(4, "little") + (4).to_bytes(4, "little")
    raw = head + table + count.to_bytes(4, "little") + offsets.tobytes() + bytes(8)
    fields = {0: Field("many", "tables")}
    reader = Reader(memoryview(raw), max_objects=500_000)
    assert len(reader.table(reader.root(b"TFL3"), fields, "model")["many"]) == count
    with pytest.raises(FlatbufferError, match="more objects"):
        reader.table(reader.root(b"TFL3"), fields, "model")


def test_a_bundle_with_a_bad_model_is_refused(make_files, tmp_path):
    manifest, files = make_files("sgd")
    files["model.tflite"] = files["model.tflite"][:-40]
    path = tmp_path / "bad.rootlet"
    write_bundle(path, manifest, files, None)
    with pytest.raises(OperatorError, match=r"model\.tflite"):
        Bundle.load(path, trusted_keys=[], allow_unsigned=True)


def test_a_flipped_byte_in_the_bundle_is_refused(make_files, tmp_path):
    manifest, files = make_files("sgd")
    path = tmp_path / "flipped.rootlet"
    write_bundle(path, manifest, files, None)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"TFL3") + 1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(HashMismatchError, match=r"model\.tflite"):
        Bundle.load(path, trusted_keys=[], allow_unsigned=True)


def test_a_declared_model_must_be_there(make_files, tmp_path):
    manifest, files = make_files("sgd")
    del files["model.tflite"]
    with pytest.raises(ManifestError, match=r"model\.tflite"):
        write_bundle(tmp_path / "none.rootlet", manifest, files, None)
