"""Parts that exchange constants of the training graph: what they change, and what is refused."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import Bundle, Trainer, publish
from rootlet_runtime.batches import Batch
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.feedback_part import (
    MAGIC,
    encode_part,
    open_part,
    read_part,
    write_part,
)
from rootlet_runtime.graph_constants import constants, with_constants

D, F, K = 4, 6, 3
NEW = np.random.default_rng(5).normal(size=(D, F)).astype(np.float32)
RATE = 0.5
Overlay = Mapping[str, Mapping[str, np.ndarray]]


@pytest.fixture
def small(bundle_paths: dict[str, Path], key: Ed25519PrivateKey) -> Bundle:
    return Bundle.load(bundle_paths["sgd"], trusted_keys=[key.public_key()])


@pytest.fixture
def part(small: Bundle, key: Ed25519PrivateKey) -> bytes:
    return encode_part(small, {"train": {"P": NEW}}, version=3, signing_key=key)


def stepped(trainer: Trainer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The head's weight after one step over all examples."""
    trainer.load_adapter(trainer.bundle.initial_adapter())
    trainer._engine.step(Batch(x, y, np.ones(len(x), np.float32), len(x)), RATE)
    return trainer.adapter["head.weight"]


def by_hand(bundle: Bundle, projection: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same of softmax regression on ``tanh(x P)``, in float64."""
    head = bundle.initial_adapter()
    h = np.tanh(x.astype(np.float64) @ projection)
    odds = np.exp(h @ head["head.weight"].T + head["head.bias"])
    error = odds / odds.sum(1, keepdims=True) - np.eye(K)[y]
    after: np.ndarray = head["head.weight"] - RATE * error.T @ h / len(x)
    return after


def test_a_step_reads_the_exchanged_constant(
    small: Bundle, part: bytes, examples: tuple[np.ndarray, np.ndarray]
) -> None:
    trainer, old = Trainer(small), np.frombuffer(small.entry("base.bin")[64:], np.float32)
    expected = [by_hand(small, p, *examples) for p in (old.reshape(D, F), NEW)]
    # float32 over sums of 37 products: 1e-5 is far above its rounding, the two differ by far more
    np.testing.assert_allclose(stepped(trainer, *examples), expected[0], atol=1e-5)
    trainer.load_feedback(open_part(part, small))
    np.testing.assert_allclose(stepped(trainer, *examples), expected[1], atol=1e-5)
    assert np.abs(expected[1] - expected[0]).max() > 0.01


def test_what_predicts_and_measures_is_left_alone(
    small: Bundle, part: bytes, examples: tuple[np.ndarray, np.ndarray]
) -> None:
    trainer = Trainer(small)
    before, loss = trainer.predict(examples[0]), trainer.evaluate(*examples).loss
    trainer.load_feedback(open_part(part, small))
    assert np.array_equal(trainer.predict(examples[0]), before)
    assert trainer.evaluate(*examples).loss == loss


def test_the_graph_is_the_same_but_for_its_constants(small: Bundle) -> None:
    entry = small.entry("train.onnx")
    found = onnx.load_from_string(with_constants(entry, {"P": NEW}))
    expected = onnx.load_from_string(bytes(entry))
    (place,) = [n for n, t in enumerate(expected.graph.initializer) if t.name == "P"]
    expected.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(NEW, "P"))
    assert found == expected
    assert with_constants(entry, {}) == bytes(entry)
    assert constants(entry)["P"].shape == (D, F)
    assert set(constants(entry)) == {tensor.name for tensor in expected.graph.initializer}


def test_a_part_is_written_and_read(part: bytes, small: Bundle, tmp_path: Path) -> None:
    write_part(tmp_path / "3.part", part)
    opened = open_part(read_part(tmp_path / "3.part"), small)
    assert opened.version == 3
    assert np.array_equal(opened.overlay["train"]["P"], NEW)
    with pytest.raises(FeedbackPartError, match="cannot be read"):
        read_part(tmp_path / "absent.part")


def test_every_flipped_byte_and_every_cut_is_refused(small: Bundle, part: bytes) -> None:
    for place in range(len(part)):
        flipped = bytearray(part)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(FeedbackPartError):
            open_part(bytes(flipped), small)
    for length in range(0, len(part), 7):
        with pytest.raises(FeedbackPartError):
            open_part(part[:length], small)
    with pytest.raises(FeedbackPartError):
        open_part(part + b"\0", small)


def test_an_older_version_is_refused(small: Bundle, part: bytes) -> None:
    assert open_part(part, small, minimum_version=3).version == 3
    with pytest.raises(FeedbackPartError, match="version 3 is older than 4"):
        open_part(part, small, minimum_version=4)


def test_another_key_is_refused_under_the_name_of_the_publisher(small: Bundle, part: bytes) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    (length,) = struct.unpack("<I", part[len(MAGIC) : len(MAGIC) + 4])
    end = len(MAGIC) + 4 + length
    header = json.loads(part[len(MAGIC) + 4 : end])
    assert header["publisher"] == small.manifest.publisher
    forged = part[:end] + stranger.sign(part[:end]) + part[end + 64 :]
    with pytest.raises(FeedbackPartError, match="not that of the bundle's publisher"):
        open_part(forged, small)


def test_another_bundle_refuses_the_part(
    small: Bundle, part: bytes, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    publish(small, tmp_path / "next.rootlet", signing_key=key)
    other = Bundle.load(tmp_path / "next.rootlet", trusted_keys=[key.public_key()])
    with pytest.raises(FeedbackPartError, match="is for bundle tiny-softmax"):
        open_part(part, other)


def test_a_bundle_whose_publisher_is_not_trusted_takes_no_part(small: Bundle, part: bytes) -> None:
    unverified = Bundle.load(small.path, trusted_keys=[], allow_unsigned=True)
    with pytest.raises(FeedbackPartError, match="trusted_keys"):
        open_part(part, unverified)


UNFIT: list[tuple[Callable[[], Any], str]] = [
    (lambda: {"train": {"P": NEW[:, :-1]}}, r"float32\[4, 5\] for a constant"),
    (lambda: {"train": {"P": NEW.astype(np.float64)}}, "float64"),
    (lambda: {"train": {"P": NEW.astype(np.int8)}}, "int8"),
    (lambda: {"train": {"P": np.full_like(NEW, np.nan)}}, "NaN or infinity"),
    (lambda: {"train": {"Q": NEW}}, "no constant 'Q'"),
    (lambda: {"train": {"adapter/head.bias": NEW[0, :K]}}, "no constant"),
    (lambda: {"predict": {"P": NEW}}, "changes the 'predict' graph"),
    (lambda: {"grads": {"P": NEW}}, "changes the 'grads' graph"),
    (dict, "no tensors"),
]


@pytest.mark.parametrize(("overlay", "message"), UNFIT)
def test_what_does_not_fit_is_refused_though_it_is_signed(
    small: Bundle, key: Ed25519PrivateKey, overlay: Callable[[], Overlay], message: str
) -> None:
    with pytest.raises(FeedbackPartError, match=message):
        encode_part(small, overlay(), version=4, signing_key=key)
