"""What of a device's answer may enter an average; everything else is left out by name."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from rootlet.compression import Compression
from rootlet.flower import to_record_dict
from rootlet.protocol import EvaluateReply, TrainReply
from rootlet_server.errors import ReplyError
from rootlet_server.federation.replies import check_evaluate_reply, check_train_reply

pytestmark = pytest.mark.usefixtures("in_a_run")

RECEIVED = {
    "head.bias": np.zeros(3, np.float32),
    "head.weight": np.zeros((3, 4), np.float32),
}
MAX_EXAMPLES = 1000


def reply(**changes):
    values = {
        "adapter": {name: array + 1 for name, array in RECEIVED.items()},
        "metric": "accuracy",
        "num_examples": 7,
        "loss": 0.5,
        "received": 0.25,
        "trained": 0.75,
        "train_s": 1.5,
        "energy_estimated_j": 2.0,
        "bytes_down": 10,
        "bytes_up": 20,
    }
    return to_record_dict(TrainReply(**values | changes).to_records())


def read(content, metric="accuracy", compression=None):
    """The metrics and the adapter."""
    return check_train_reply(
        Message(content, 1, "train"),
        received=RECEIVED,
        metric=metric,
        max_examples=MAX_EXAMPLES,
        compression=compression,
    )


def check(content, metric="accuracy"):
    """The metrics."""
    return read(content, metric)[0]


def test_what_the_sdk_sends_is_accepted():
    assert check(reply()) == {
        "num-examples": 7,
        "loss": 0.5,
        "accuracy_received": 0.25,
        "accuracy_trained": 0.75,
        "train_s": 1.5,
        "energy_estimated_j": 2.0,
        "bytes_down": 10,
        "bytes_up": 20,
    }


def test_the_adapter_comes_in_the_order_of_the_one_that_was_sent():
    content = reply()
    content["arrays"] = ArrayRecord(dict(reversed(content["arrays"].items())))
    adapter = read(content)[1]
    assert list(adapter) == list(RECEIVED)
    assert all((value == 1).all() for value in adapter.values())


def test_the_feedback_that_a_device_holds_is_heard():
    content = reply(feedback_version=3)
    assert check(content)["feedback_version"] == 3
    for impossible in (0, -1, 1.5, float("nan")):
        content = reply()
        content["metrics"]["feedback_version"] = impossible
        with pytest.raises(ReplyError, match="feedback_version"):
            check(content)


def test_regression_measures_an_error():
    assert check(reply(metric="error"), metric="error")["error_trained"] == 0.75
    with pytest.raises(ReplyError, match="error_received"):
        check(reply(metric="error"))


def compressed(compression, change=1.0, **changes):
    """The content of a reply whose update travels compressed."""
    update = {name: array + np.float32(change) for name, array in RECEIVED.items()}
    sent = compression.encode(update, np.random.default_rng(0)) | changes
    content = reply()
    del content["arrays"]
    content["update"] = ArrayRecord({name: Array(array) for name, array in sent.items()})
    return content


@pytest.mark.parametrize(
    "compression",
    [Compression(kind="int8"), Compression(kind="int16"), Compression(kind="top-k", top_k=1.0)],
    ids=lambda each: each.kind,
)
def test_a_compressed_update_moves_the_received_adapter(compression):
    adapter = read(compressed(compression), compression=compression)[1]
    assert list(adapter) == list(RECEIVED)
    for name, value in adapter.items():
        np.testing.assert_allclose(value, RECEIVED[name] + 1, atol=1 / 127)  # the coarsest scale
        assert value.dtype == np.float32


INT8 = Compression(kind="int8")


@pytest.mark.parametrize(
    ("content", "compression", "reason"),
    [
        (reply, INT8, "holds the records arrays, metrics; expected update, metrics"),
        (lambda: compressed(INT8), None, "holds the records metrics, update; expected arrays"),
        (lambda: compressed(Compression(kind="int16")), INT8, "int16"),
        (lambda: compressed(INT8, **{"head.bias": np.zeros(4, np.int8)}), INT8, r"int8\[4\]"),
        (lambda: compressed(INT8, extra=np.zeros(4, np.int8)), INT8, "extra"),
        (lambda: compressed(INT8, **{"#scale": np.full(2, -1, np.float32)}), INT8, "a scale is"),
        (lambda: compressed(INT8, **{"#scale": np.full(2, np.inf, np.float32)}), INT8, "finite"),
        (lambda: compressed(INT8, **{"#scale": np.full(2, 3e38, np.float32)}), INT8,
         "not finite, once moved"),
    ],
)  # fmt: skip
def test_a_compressed_update_that_was_not_asked_for_or_is_false_is_left_out(
    content, compression, reason
):
    with pytest.raises(ReplyError, match=reason):
        read(content(), compression=compression)


def test_what_the_sdk_sends_to_evaluate_is_accepted():
    values = EvaluateReply(metric="accuracy", num_examples=3, loss=0.5, received=1.0)
    message = Message(to_record_dict(values.to_records()), 1, "evaluate")
    metrics = check_evaluate_reply(message, metric="accuracy", max_examples=MAX_EXAMPLES)
    assert metrics == {"num-examples": 3, "loss": 0.5, "accuracy_received": 1.0}


def test_an_error_reply_carries_its_reason():
    question = Message(RecordDict(), 1, "train")
    question.metadata.__dict__["_message_id"] = "m"
    message = Message(Error(1001, "another bundle"), reply_to=question)
    with pytest.raises(ReplyError, match="error 1001: another bundle"):
        check_train_reply(message, received=RECEIVED, metric="accuracy", max_examples=1)


def with_array(name, array):
    content = reply()
    content["arrays"][name] = array
    return content


def with_metric(name, value):
    content = reply()
    content["metrics"][name] = value
    return content


def without(record, name):
    content = reply()
    del content[record][name]
    return content


NAN = np.array([0, math.nan, 0], np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict, "holds the records nothing"),
        (lambda: RecordDict({"arrays": ArrayRecord()}), "expected arrays, metrics"),
        (
            lambda: RecordDict({"arrays": ConfigRecord(), "metrics": MetricRecord()}),
            "'arrays' is not an ArrayRecord",
        ),
        (lambda: without("arrays", "head.bias"), "the adapter holds head.weight"),
        (lambda: with_array("extra", Array(NAN)), "extra"),
        (lambda: with_array("head.bias", Array(NAN)), "head.bias holds a value that is not"),
        (lambda: with_array("head.bias", Array(NAN.astype(np.float64))), "float64"),
        (lambda: with_array("head.bias", Array(NAN.reshape(3, 1))), r"float32\[3, 1\]"),
        (lambda: with_array("head.bias", Array(np.zeros(10_000, np.float32))), "40128 bytes"),
        (lambda: with_array("head.bias", Array("float32", (3,), "pickle", b"x")), "'pickle'"),
        (
            lambda: with_array("head.bias", Array("float32", (3,), "numpy.ndarray", b"x" * 9)),
            "begin like a .npy file",
        ),
        (lambda: without("metrics", "loss"), "the metrics are"),
        (lambda: with_metric("speed", 1.0), "speed"),
        (lambda: with_metric("loss", math.inf), "loss is inf"),
        (lambda: with_metric("loss", [1.0, 2.0]), "one finite number"),
        (lambda: with_metric("num-examples", 0), "num-examples is 0"),
        (lambda: with_metric("num-examples", -3), "num-examples is -3"),
        (lambda: with_metric("num-examples", 7.5), "num-examples is 7.5"),
        (lambda: with_metric("loss", 1e308), r"loss is 1e\+308; expected -1e\+30 to 1e\+30"),
        (lambda: with_metric("bytes_up", 1e308), "bytes_up"),
        (lambda: with_metric("train_s", -1.0), "train_s is -1; expected 0 to"),
        (lambda: with_metric("energy_estimated_j", -1.0), "energy_estimated_j is -1"),
        (lambda: with_metric("accuracy_trained", 1.5), "accuracy_trained is 1.5; expected 0 to 1"),
    ],
)
def test_anything_else_is_left_out_by_name(content, reason):
    with pytest.raises(ReplyError, match=reason):
        check(content())


def test_a_device_weighs_by_at_most_max_examples():
    content = with_metric("num-examples", MAX_EXAMPLES + 1)
    assert check(content)["num-examples"] == MAX_EXAMPLES


def test_a_header_that_claims_a_terabyte_allocates_nothing():
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }"
    header += " " * (117 - len(header)) + "\n"
    lie = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with pytest.raises(ReplyError, match="with 0 bytes of data"):
        check(with_array("head.bias", Array("float32", (3,), "numpy.ndarray", lie)))
