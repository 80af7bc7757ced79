"""A refreshed feedback in a train request: learnt by, kept, told to the server, or refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata

from rootlet import flower, protocol
from rootlet.continual import Continual
from rootlet.data import ArrayData
from rootlet.fleet.envelope import FleetRequest
from rootlet.learner import Learner
from rootlet.participant import DEFAULT_LIMITS, Participant
from rootlet.protocol import TrainReply, TrainRequest
from rootlet.train_config import TrainConfig
from rootlet_runtime import Bundle, Trainer, publish
from rootlet_runtime.batches import Batch
from rootlet_runtime.feedback_part import MAGIC, encode_part

GOOD = Path(__file__).parents[1] / "vectors" / "bundles" / "good.rootlet"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
Y = np.arange(8) % 2
DATA = ArrayData((X, Y), (X, Y))


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.load(GOOD, trusted_keys=[KEY.public_key()])


def part(bundle: Bundle, version: int) -> bytes:
    """A part whose constant is its version."""
    value = np.full((4, 6), float(version), np.float32)
    return encode_part(bundle, {"train": {"P": value}}, version=version, signing_key=KEY)


def request(bundle: Bundle, feedback: bytes = b"", **changes: object) -> TrainRequest:
    manifest = bundle.manifest
    values = {
        "adapter": bundle.initial_adapter(), "bundle": manifest.name,
        "bundle_version": manifest.version, "manifest_sha256": bundle.manifest_sha256,
        "round": 1, "epochs": 1, "batch_size": 2, "learning_rate": 0.1, "feedback": feedback,
    }  # fmt: skip
    return TrainRequest(**(values | changes))


def asked(made: TrainRequest) -> FleetRequest:
    return FleetRequest(7, "1", protocol.TRAIN, made.to_records(), 1000)


def learner(bundle: Bundle, folder: Path) -> Learner:
    continual = Continual(TrainConfig().continual, bundle.manifest, folder / "replay", lambda: None)
    return Learner(bundle, folder, 1, continual)


def head_after_a_step(trainer: Trainer) -> np.ndarray:
    trainer.load_adapter(trainer.bundle.initial_adapter())
    trainer._engine.step(Batch(X[:2], Y[:2], np.ones(2, np.float32), 2), 0.5)
    return trainer.adapter["head.weight"]


def told(records) -> int:
    return TrainReply.from_records(records).feedback_version


def test_a_device_learns_by_a_part_keeps_it_and_says_which(bundle: Bundle, tmp_path: Path) -> None:
    device = learner(bundle, tmp_path / "adapter")
    own = head_after_a_step(device.trainer)
    participant = device.participant(DATA, DEFAULT_LIMITS)
    assert told(participant.answer(asked(request(bundle))).records) == 0
    second = asked(request(bundle, part(bundle, 2)))
    assert told(participant.answer(second).records) == 2
    refreshed = head_after_a_step(device.trainer)
    assert not np.array_equal(own, refreshed)
    assert told(participant.answer(second).records) == 2  # a server that does not know yet
    assert told(participant.answer(asked(request(bundle))).records) == 2

    again = learner(bundle, tmp_path / "adapter")
    assert again.feedback_version == 2
    assert np.array_equal(head_after_a_step(again.trainer), refreshed)
    older = again.participant(DATA, DEFAULT_LIMITS).answer(asked(request(bundle, part(bundle, 1))))
    assert older.code == protocol.ERROR_REFUSED
    assert "feedback part is refused: feedback version 1 is older than 2" in older.error
    assert np.array_equal(head_after_a_step(again.trainer), refreshed)


def signed_by(made: bytes, key: Ed25519PrivateKey) -> bytes:
    """The same part under another signature."""
    start = len(MAGIC) + 4
    end = start + struct.unpack("<I", made[len(MAGIC) : start])[0]
    return made[:end] + key.sign(made[:end]) + made[end + 64 :]


def later_bundle(bundle: Bundle, folder: Path) -> Bundle:
    path = folder / "later.rootlet"
    publish(bundle, path, signing_key=KEY, adapter=bundle.initial_adapter())
    return Bundle.load(path, trusted_keys=[KEY.public_key()])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda made: made[:-1] + bytes([made[-1] ^ 1]), "not those that were signed"),
        (lambda made: made[:40], "truncated"),
        (lambda made: b"nonsense" * 9, "not a feedback part"),
        (
            lambda made: made.replace(b'"version": 2', b'"version": 3'),
            "damaged, or made by another",
        ),
        (
            lambda made: signed_by(made, Ed25519PrivateKey.from_private_bytes(bytes(32))),
            "not that of the bundle's publisher",
        ),
    ],
)
def test_a_spoilt_part_is_refused_and_never_learnt_by(
    bundle: Bundle, tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    device = learner(bundle, tmp_path / "adapter")
    own = head_after_a_step(device.trainer)
    finished, made = device.trainer.adapter, part(bundle, 2)
    spoilt = spoil(made)
    assert spoilt != made
    participant = device.participant(DATA, DEFAULT_LIMITS)
    answer = participant.answer(asked(request(bundle, spoilt)))
    assert (answer.records, answer.code) == ({}, protocol.ERROR_REFUSED)
    assert answer.error.startswith("the feedback part is refused: ")
    assert reason in answer.error
    assert all(np.array_equal(finished[n], a) for n, a in device.trainer.adapter.items())
    assert not (tmp_path / "adapter" / "feedback.part").exists()
    assert np.array_equal(head_after_a_step(device.trainer), own)
    assert told(participant.answer(asked(request(bundle, made))).records) == 2


def test_a_part_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    foreign = part(later_bundle(bundle, tmp_path), 2)
    answer = Participant(Trainer(bundle), DATA).answer(asked(request(bundle, foreign)))
    assert answer.code == protocol.ERROR_REFUSED
    assert "the part is for bundle" in answer.error


def test_a_bundle_without_a_verified_publisher_takes_no_part(bundle: Bundle) -> None:
    unsigned = Bundle.load(GOOD, trusted_keys=[], allow_unsigned=True)
    answer = Participant(Trainer(unsigned), DATA).answer(asked(request(bundle, part(bundle, 2))))
    assert answer.code == protocol.ERROR_REFUSED
    assert "trusted_keys" in answer.error


def test_a_refused_request_leaves_its_part_unread(bundle: Bundle, tmp_path: Path) -> None:
    device = learner(bundle, tmp_path / "adapter")
    far = request(bundle, part(bundle, 2), epochs=21)
    assert "epochs is 21" in device.participant(DATA, DEFAULT_LIMITS).answer(asked(far)).error
    assert device.feedback_version == 0


def test_what_keeps_nothing_says_that_it_holds_nothing(bundle: Bundle) -> None:
    """So that a server sends the part in each round."""
    trainer = Trainer(bundle)
    own = head_after_a_step(trainer)
    participant = Participant(trainer, DATA)
    assert told(participant.answer(asked(request(bundle, part(bundle, 2)))).records) == 0
    assert not np.array_equal(head_after_a_step(trainer), own)


def message(made: TrainRequest):
    metadata = Metadata(
        run_id=7, message_id="id", src_node_id=1, dst_node_id=5, reply_to_message_id="",
        group_id="1", created_at=1.8e9, ttl=60.0, message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, content=flower.to_record_dict(made.to_records()))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_stock_client_app_does_the_same(bundle: Bundle, tmp_path: Path, remembers: bool) -> None:
    app = flower.client_app(bundle, DATA, state_dir=tmp_path if remembers else None)
    node = Context(run_id=7, node_id=5, node_config={}, state=RecordDict(), run_config={})
    for feedback in (part(bundle, 2), b""):
        reply = app(message(request(bundle, feedback)), node)
        assert told(flower.from_record_dict(reply.content)) == (2 if remembers else 0)
    refused = app(message(request(bundle, part(bundle, 3)[:-1])), node)
    assert refused.error.code == protocol.ERROR_REFUSED
    assert "the feedback part is refused" in refused.error.reason
