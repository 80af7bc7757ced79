"""Rootlet's contract inside Flower messages."""

import dataclasses

import numpy as np
import pytest

from rootlet.compression import Compression
from rootlet.errors import RecordError
from rootlet.feedback_record import MAX_FEEDBACK_BYTES
from rootlet.protocol import (
    PROTOCOL_VERSION,
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
)

ADAPTER = {"layer.lora_B": np.ones((3, 2), np.float32), "head.bias": np.zeros(2, np.float32)}
BUNDLE = {
    "bundle": "digits",
    "bundle_version": 3,
    "manifest_sha256": "ab" * 32,
    "round": 4,
}
TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.5}
MEASURED = {"metric": "accuracy", "num_examples": 40, "loss": 0.25, "received": 0.5}
TRAINED = {
    "trained": 0.75,
    "train_s": 1.5,
    "energy_estimated_j": 0.125,
    "bytes_down": 1000,
    "bytes_up": 900,
}
VALUES = [
    EvaluateRequest(adapter=ADAPTER, **BUNDLE),
    TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING),
    EvaluateReply(**MEASURED),
    TrainReply(adapter=ADAPTER, **MEASURED, **TRAINED),
    TrainReply(adapter=ADAPTER, **(MEASURED | {"metric": "error"}), **TRAINED),
]


OPTIONAL_VALUES = [
    TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING, proximal_mu=0.25),
    TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING, compression=Compression(kind="int8")),
    TrainRequest(
        adapter=ADAPTER, **BUNDLE, **TRAINING, compression=Compression(kind="top-k", top_k=0.5)
    ),
]
FEEDBACK_VALUES = [
    TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING, feedback=b"\x00part\xff"),
    TrainReply(adapter=ADAPTER, **MEASURED, **TRAINED, feedback_version=2**63 - 1),
]


def plain(value):
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    arrays = fields.pop("adapter", {})
    return fields, {name: array.tolist() for name, array in arrays.items()}


@pytest.mark.parametrize(
    "value", VALUES + FEEDBACK_VALUES + OPTIONAL_VALUES, ids=lambda value: type(value).__name__
)
def test_values_survive_the_journey(value):
    records = {name: dict(record) for name, record in value.to_records().items()}
    assert plain(type(value).from_records(records)) == plain(value)


def test_the_records_are_those_of_the_documentation():
    records = VALUES[1].to_records()
    assert set(records) == {"arrays", "config"}
    assert records["config"] == {"protocol": PROTOCOL_VERSION, **BUNDLE, **TRAINING}
    assert VALUES[0].to_records()["config"] == {"protocol": PROTOCOL_VERSION, **BUNDLE}
    assert VALUES[3].to_records()["metrics"] == {
        "num-examples": 40,
        "loss": 0.25,
        "accuracy_received": 0.5,
        "accuracy_trained": 0.75,
        "train_s": 1.5,
        "energy_estimated_j": 0.125,
        "bytes_down": 1000,
        "bytes_up": 900,
    }
    assert {"error_received", "error_trained"} <= set(VALUES[4].to_records()["metrics"])
    assert VALUES[2].to_records() == {
        "metrics": {"num-examples": 40, "loss": 0.25, "accuracy_received": 0.5}
    }


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_missing_and_unknown_names_are_refused(value):
    records = {name: dict(record) for name, record in value.to_records().items()}
    for name in records:
        with pytest.raises(RecordError, match="missing"):
            type(value).from_records({k: v for k, v in records.items() if k != name})
    with pytest.raises(RecordError, match="unknown"):
        type(value).from_records(records | {"more": {}})
    name = "config" if "config" in records else "metrics"
    for key in records[name]:
        less = {k: v for k, v in records[name].items() if k != key}
        with pytest.raises(RecordError):
            type(value).from_records(records | {name: less})
    with pytest.raises(RecordError, match=r"unknown \['surprise'\]"):
        type(value).from_records(records | {name: records[name] | {"surprise": 1}})


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("protocol", 2, "install the same rootlet version"),
        ("protocol", None, "install the same rootlet version"),
        ("bundle", "", "1 to 200 characters"),
        ("bundle", "x" * 201, "1 to 200 characters"),
        ("bundle", 5, "of type str"),
        ("bundle_version", 0, "at least 1"),
        ("bundle_version", True, "of type int"),
        ("bundle_version", "3", "of type int"),
        ("manifest_sha256", "AB" * 32, "hex"),
        ("manifest_sha256", "ab", "hex"),
        ("round", -1, "at least 0"),
        ("epochs", 0, "at least 1"),
        ("epochs", 1.0, "of type int"),
        ("batch_size", -5, "at least 1"),
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("learning_rate", float("inf"), "positive"),
        ("learning_rate", 1, "of type float"),
    ],
)
def test_impossible_settings_are_refused(key, value, match):
    records = VALUES[1].to_records()
    records["config"] = dict(records["config"]) | {key: value}
    with pytest.raises(RecordError, match=match):
        TrainRequest.from_records(records)


@pytest.mark.parametrize(
    "arrays", [{}, {"a": np.zeros(2)}, {"a": [1.0]}, {"a": np.zeros(1, np.int32)}, {"a": None}]
)
def test_impossible_adapters_are_refused(arrays):
    for value in (VALUES[0], VALUES[1], VALUES[3]):
        records = value.to_records() | {"arrays": arrays}
        with pytest.raises(RecordError):
            type(value).from_records(records)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num-examples", 0),
        ("num-examples", 1.0),
        ("num-examples", [1]),
        ("loss", float("nan")),
        ("loss", "0"),
        ("accuracy_received", float("inf")),
        ("train_s", -1.0),
        ("bytes_up", 1.5),
        ("bytes_down", -1),
        ("energy_estimated_j", True),
    ],
)
def test_impossible_metrics_are_refused(key, value):
    records = VALUES[3].to_records()
    records["metrics"] = dict(records["metrics"]) | {key: value}
    with pytest.raises(RecordError, match=key):
        TrainReply.from_records(records)


def test_an_integer_learning_rate_travels_as_a_float():
    request = TrainRequest(adapter=ADAPTER, **BUNDLE, **(TRAINING | {"learning_rate": 1}))
    assert TrainRequest.from_records(request.to_records()).learning_rate == 1.0


def test_an_unknown_metric_is_refused():
    with pytest.raises(RecordError, match="metric"):
        EvaluateReply(**(MEASURED | {"metric": "beauty"}))


def test_feedback_is_a_record_of_bytes_and_a_metric_where_there_is_one():
    request, reply = FEEDBACK_VALUES
    records = request.to_records()
    assert set(records) == {"arrays", "config", "feedback"}
    assert bytes(records["feedback"]["part"]) == b"\x00part\xff"
    assert records["config"] == VALUES[1].to_records()["config"]
    assert reply.to_records()["metrics"]["feedback_version"] == 2**63 - 1
    assert "feedback_version" not in VALUES[3].to_records()["metrics"]
    with pytest.raises(RecordError, match="unknown"):
        EvaluateRequest.from_records(VALUES[0].to_records() | {"feedback": records["feedback"]})


class Huge(np.ndarray):
    """An array that says how large it is and cannot be copied."""

    nbytes = MAX_FEEDBACK_BYTES + 1

    def tobytes(self, *_):
        raise AssertionError("copied before its size was checked")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({}, "holds 'part' only"),
        ({"part": np.ones(3, np.uint8), "more": np.ones(3, np.uint8)}, "holds 'part' only"),
        ({"part": np.ones(3, np.float32)}, "uint8"),
        ({"part": np.ones((3, 3), np.uint8)}, "uint8"),
        ({"part": b"bytes"}, "uint8"),
        ({"part": np.ones(0, np.uint8)}, "takes 0 bytes"),
        ({"part": np.ones(1, np.uint8).view(Huge)}, f"1 to {MAX_FEEDBACK_BYTES}"),
    ],
)
def test_impossible_feedback_records_are_refused(record, match):
    with pytest.raises(RecordError, match=match):
        TrainRequest.from_records(VALUES[1].to_records() | {"feedback": record})


def test_feedback_that_no_message_may_carry_is_refused_where_it_is_sent():
    with pytest.raises(RecordError, match="feedback is"):
        dataclasses.replace(FEEDBACK_VALUES[0], feedback=bytes(MAX_FEEDBACK_BYTES + 1))
    for version in (-1, 2**63):
        with pytest.raises(RecordError, match="feedback_version"):
            dataclasses.replace(FEEDBACK_VALUES[1], feedback_version=version)


def test_a_proximal_term_is_a_setting_where_there_is_one():
    plain_request = TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING)
    assert "proximal_mu" not in plain_request.to_records()["config"]  # as older devices read it
    held = dataclasses.replace(plain_request, proximal_mu=0.25).to_records()
    assert held["config"]["proximal_mu"] == 0.25
    for impossible in (-0.1, float("nan"), float("inf"), 1e7):
        with pytest.raises(RecordError, match="proximal_mu"):
            dataclasses.replace(plain_request, proximal_mu=impossible)
    held["config"]["proximal_mu"] = 1
    with pytest.raises(RecordError, match="of type float"):
        TrainRequest.from_records(held)


def test_a_compressed_update_travels_in_the_place_of_the_adapter():
    update = {"w": np.ones(3, np.int8), "#scale": np.ones(1, np.float32)}
    reply = TrainReply(adapter=ADAPTER, update=update, **MEASURED, **TRAINED)
    records = reply.to_records()
    assert set(records) == {"update", "metrics"}
    read = TrainReply.from_records(records)
    assert dict(read.adapter) == {}
    np.testing.assert_array_equal(read.update["w"], update["w"])
    with pytest.raises(RecordError, match="records"):
        TrainReply.from_records({**records, "arrays": dict(ADAPTER)})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compression": "zip"}, "one of int8, int16, top-k"),
        ({"compression": "top-k"}, "top_k is 0.0"),
        ({"compression": "top-k", "top_k": 1.5}, "top_k is 1.5"),
        ({"compression": "int8", "top_k": 0.5}, "0 where compression is int8"),
        ({"top_k": 0.5}, "0 without compression"),
        ({"compression": 8}, "of type str"),
    ],
)
def test_impossible_compressions_are_refused(settings, reason):
    records = TrainRequest(adapter=ADAPTER, **BUNDLE, **TRAINING).to_records()
    records["config"].update(settings)
    with pytest.raises(RecordError, match=reason):
        TrainRequest.from_records(records)
