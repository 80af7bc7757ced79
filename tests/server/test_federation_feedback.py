"""The feedback file of a federation: read again, refused or sent, and to whom."""

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.feedback_record import MAX_FEEDBACK_BYTES
from rootlet_runtime import Bundle
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.feedback_part import encode_part
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.config import ServeConfig
from rootlet_server.federation.feedback import FeedbackFile

GOOD = Path(__file__).parents[1] / "vectors" / "bundles" / "good.rootlet"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def bundle():
    return Bundle.load(GOOD, trusted_keys=[KEY.public_key()])


def part(bundle, version, value=1.0):
    overlay = {"train": {"P": np.full((4, 6), value, np.float32)}}
    return encode_part(bundle, overlay, version=version, signing_key=KEY)


def test_each_round_reads_what_is_there(bundle, tmp_path):
    path = tmp_path / "feedback.part"
    file = FeedbackFile(path, bundle)
    assert (file.for_round(1), file.version) == (b"", 0)
    for version in (2, 5):
        made = part(bundle, version)
        path.write_bytes(made)
        assert (file.for_round(2), file.for_round(3), file.version) == (made, made, version)
    path.unlink()
    assert file.for_round(4) == b""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda bundle: part(bundle, 2)[:-1], "not those that were signed"),
        (lambda bundle: b"", "not a feedback part"),
        (lambda bundle: part(bundle, 1), "version 1 is older than 2"),
        (lambda bundle: part(bundle, 2, value=7.0), "another part of version 2"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_costs_a_round_only_its_part(
    bundle, tmp_path, caplog, spoil, reason
):
    path = tmp_path / "feedback.part"
    path.write_bytes(part(bundle, 2))
    file = FeedbackFile(path, bundle)
    file.read()
    path.write_bytes(spoil(bundle))
    assert file.for_round(7) == b""
    assert f"round 7 goes on without a feedback part: {path}: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(FeedbackPartError, match=reason):
        file.read()
    path.write_bytes(part(bundle, 3))
    assert file.for_round(8) == path.read_bytes()


def test_a_file_larger_than_a_message_is_refused_before_it_is_read(bundle, tmp_path):
    path = tmp_path / "feedback.part"
    with path.open("wb") as file:
        file.truncate(MAX_FEEDBACK_BYTES + 1)  # sparse
    with pytest.raises(FeedbackPartError, match=f"larger than {MAX_FEEDBACK_BYTES} bytes"):
        FeedbackFile(path, bundle).read()


def test_nodes_that_said_that_they_hold_it_lack_it_no_more(bundle, tmp_path):
    path = tmp_path / "feedback.part"
    path.write_bytes(part(bundle, 2))
    file = FeedbackFile(path, bundle)
    file.read()
    assert file.lacks(1)
    file.heard(1, {"feedback_version": 2})
    assert not file.lacks(1)
    path.write_bytes(part(bundle, 3))
    file.read()
    assert file.lacks(1)
    file.heard(1, {"feedback_version": 4})  # fetched by the app itself
    assert not file.lacks(1)
    file.heard(1, {})  # a node that lost its state directory
    assert file.lacks(1)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ServeConfigError, match="in a folder that does not exist"):
        ServeConfig(
            bundle=GOOD, trusted_keys=(KEY.public_key(),), signing_key=tmp_path / "key.pem",
            state_dir=tmp_path, feedback=tmp_path / "nowhere" / "feedback.part",
        )  # fmt: skip
