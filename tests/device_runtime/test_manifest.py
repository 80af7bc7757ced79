import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet_runtime import (
    Bundle,
    GraphSpec,
    LitertSpec,
    Manifest,
    TensorSpec,
    TrainingDefaults,
    strict_json,
)
from rootlet_runtime.errors import ManifestError

Tiny = Callable[[str], tuple[Manifest, dict[str, bytes]]]


def test_json_and_back_is_the_same_manifest_and_the_same_bytes(bundle: Bundle) -> None:
    raw = bundle.manifest.to_json()
    assert raw == bytes(bundle.entry("manifest.json"))
    assert Manifest.from_json(raw) == bundle.manifest
    assert Manifest.from_json(raw).to_json() == raw


def test_a_manifest_cannot_be_changed(bundle: Bundle) -> None:
    with pytest.raises(FrozenInstanceError):
        bundle.manifest.version = 9  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "update rootlet"),
        ({"name": "Tiny Net"}, "name"),
        ({"version": 0}, r"version: 0; must lie in 1\.\."),
        ({"version": 2**63}, "version"),
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "2026-13-01T00:00:00Z"}, "created_at"),
        ({"expires_at": "2026-10-01T00:00:00Z"}, "not after"),
        ({"publisher": "ab"}, "publisher"),
        ({"task": "ranking"}, "classification, regression"),
        ({"rule": "../x"}, "rule"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("inf")}, "alpha"),
        ({"rank": -1}, "rank"),
        ({"base_dtype": "int2"}, "base_dtype"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 4}, "exceeds max_batch 4"),
        ({"num_outputs": 0}, "num_outputs"),
        ({"labels": ("a",)}, "labels"),
        ({"adapter": ()}, "nothing would learn"),
        ({"x": TensorSpec(name="x", dtype="float64", shape=(None, 4))}, "x.dtype"),
        ({"x": TensorSpec(name="x", dtype="float32", shape=(8, 4))}, "x.shape"),
        ({"y": TensorSpec(name="y", dtype="int64", shape=(None, 3))}, "y is int64"),
        ({"task": "regression"}, "regression needs float32"),
        ({"graphs": {}}, "exactly"),
        ({"cost": {"Train MACs": 1}}, "cost"),
        ({"cost": {"train_macs_int8": -1}}, "cost.train_macs_int8"),
        ({"files": {}, "licence": "x" * 5000}, "licence"),
    ],
)
def test_impossible_values_are_refused_by_name(
    changes: dict[str, Any], message: str, tiny: Tiny
) -> None:
    with pytest.raises(ManifestError, match=message):
        replace(tiny("sgd")[0], **changes)


def test_optimiser_slots_name_adapter_tensors(tiny: Tiny) -> None:
    slot = TensorSpec(name="m/other.weight", dtype="float32", shape=(3,))
    with pytest.raises(ManifestError, match="slot"):
        replace(tiny("adam")[0], optimizer_state=(slot,))


@pytest.mark.parametrize("role", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("end", ["inputs", "outputs"])
def test_graphs_take_and_give_what_the_contract_says(role: str, end: str, tiny: Tiny) -> None:
    manifest, _ = tiny("adam")
    for names in (
        getattr(manifest.graphs[role], end)[1:],
        (*getattr(manifest.graphs[role], end), "z"),
    ):
        graph = replace(manifest.graphs[role], **{end: names})
        with pytest.raises(ManifestError, match=f"graphs.{role}.{end}"):
            replace(manifest, graphs={**manifest.graphs, role: graph})


def test_step_belongs_to_the_train_graph(tiny: Tiny) -> None:
    manifest, _ = tiny("sgd")
    predict = manifest.graphs["predict"]
    graph = replace(predict, inputs=(*predict.inputs, "step"))
    with pytest.raises(ManifestError, match="train graph only"):
        replace(manifest, graphs={**manifest.graphs, "predict": graph})


def test_a_litert_model_takes_neither_a_latent_nor_a_teacher(tiny: Tiny) -> None:
    manifest, _ = tiny("sgd")
    train = manifest.graphs["train"]
    taught = replace(train, inputs=(*train.inputs, "teacher", "teacher_weight"))
    encode = GraphSpec(file="encode.onnx", inputs=("x",), outputs=("latent",))
    latent = TensorSpec(name="latent", dtype="float32", shape=(None, 6))
    litert = LitertSpec(file="model.tflite", batches=(1, 8))
    for changes in (
        {"graphs": {**manifest.graphs, "train": taught}},
        {"graphs": {**manifest.graphs, "encode": encode}, "latent": latent},
    ):
        assert replace(manifest, **changes).litert is None
        with pytest.raises(ManifestError, match="neither a latent nor a teacher"):
            replace(manifest, litert=litert, **changes)
    assert replace(manifest, litert=litert).litert == litert


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_training_defaults_check_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        TrainingDefaults(**({"learning_rate": 0.1, "batch_size": 8, "epochs": 1} | values))


def test_an_undeclared_bundle_is_not_read(tiny: Tiny) -> None:
    with pytest.raises(ManifestError, match="every file"):
        Manifest.from_json(tiny("sgd")[0].to_json())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}',
        b'{"schema": -Infinity}',
        b'{"schema": 1}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_hostile_json_is_a_manifest_error(text: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(text)


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b'"\\ud800"', b'{"\\udfff": 1}'])
def test_what_could_not_be_written_again_is_refused(value: bytes, vector: dict[str, Any]) -> None:
    """json.loads makes an infinity of a huge number, and takes half a surrogate pair."""
    empty = b'"extensions": {}'
    raw = json.dumps(vector).encode()
    assert raw.count(empty) == 1
    with pytest.raises(ManifestError, match=r"too large|surrogates not allowed"):
        Manifest.from_json(raw.replace(empty, b'"extensions": {"a": %b}' % value))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise_anything_else(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(raw)


@given(data=st.data())
def test_any_field_of_another_type_is_refused(data: st.DataObject, vector: dict[str, Any]) -> None:
    name = data.draw(st.sampled_from(sorted(vector)))
    value = data.draw(
        st.sampled_from([None, True, 3, -1, 1.5, "é\u0000", [], {}, [[1]], {"a": []}])
    )
    manifest = vector | {name: value}
    try:
        decoded = Manifest.from_json(json.dumps(manifest).encode())
    except ManifestError:
        return
    assert strict_json.parse(decoded.to_json())[name] == value


@pytest.fixture(scope="module")
def vector(bundle_paths: dict[str, Path]) -> dict[str, Any]:
    with Bundle.load(bundle_paths["adam"], trusted_keys=[], allow_unsigned=True) as bundle:
        manifest: dict[str, Any] = json.loads(bundle.manifest.to_json())
    return manifest
