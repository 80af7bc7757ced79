"""The mailbox: what a crash leaves behind, and what a damaged disk does."""

import numpy as np
import pytest

from rootlet.fleet.envelope import Answer, Envelope, seal_reply
from rootlet.fleet.mailbox import Mailbox, Stage
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import encode_message
from rootlet.fleet.records import ArrayRecord, MetricRecord


@pytest.fixture
def request_objects():
    metadata = MESSAGES["Metadata"](
        run_id=3, src_node_id=1, dst_node_id=9, message_type="train", ttl=60.0, created_at=1.8e9
    )
    records = {"arrays": ArrayRecord(w=np.arange(1000, dtype=np.float32))}
    objects, root = encode_message(MESSAGES["Message"](metadata=metadata), records)
    metadata.message_id = root
    return Envelope(metadata, objects.tree(root)), objects.contents


@pytest.fixture
def reply(request_objects):
    answer = Answer({"metrics": MetricRecord(loss=0.5)})
    return seal_reply(request_objects[0], answer, now=1.8e9 + 1)


def test_each_stage_survives_a_restart(tmp_path, request_objects, reply):
    envelope, contents = request_objects
    mailbox = Mailbox(tmp_path / "mailbox")
    assert mailbox.stage is Stage.EMPTY

    mailbox.pulled(envelope)
    again = Mailbox(tmp_path / "mailbox")
    assert (again.stage, again.envelope) == (Stage.PULLED, envelope)

    mailbox.fetched(contents)
    again = Mailbox(tmp_path / "mailbox")
    assert (again.stage, again.envelope, again.contents) == (Stage.FETCHED, envelope, contents)

    mailbox.answered(reply)
    again = Mailbox(tmp_path / "mailbox")
    assert (again.stage, again.envelope, again.reply) == (Stage.ANSWERED, envelope, reply)
    assert again.contents == {}

    again.clear()
    assert Mailbox(tmp_path / "mailbox").stage is Stage.EMPTY
    again.clear()  # twice is fine


def test_its_folder_is_private(tmp_path, request_objects):
    Mailbox(tmp_path / "mailbox").pulled(request_objects[0])
    assert (tmp_path / "mailbox").stat().st_mode & 0o777 == 0o700


def test_without_a_folder_nothing_is_written(tmp_path, request_objects, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mailbox = Mailbox()
    mailbox.pulled(request_objects[0])
    mailbox.remember_node("a:1", b"key", 5)
    mailbox.clear()
    assert mailbox.node_id("a:1", b"key") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_or_a_cut_is_an_empty_mailbox_or_the_same_message(
    tmp_path, request_objects, reply
):
    mailbox = Mailbox(tmp_path)
    mailbox.pulled(request_objects[0])
    mailbox.fetched(request_objects[1])
    path = tmp_path / "message"
    whole = path.read_bytes()
    for position in range(0, len(whole), 41):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        for content in (bytes(damaged), whole[:position]):
            path.write_bytes(content)
            found = Mailbox(tmp_path)
            if found.stage is Stage.EMPTY:
                assert (found.envelope, found.contents, found.reply) == (None, {}, None)
            else:  # damage to a field of the metadata; the objects are whole
                assert found.contents in ({}, request_objects[1])


def test_a_mailbox_of_garbage_is_empty(tmp_path):
    for content in (b"", b"\0" * 7, b"\xff" * 100, (5).to_bytes(8) + b"empty", (2**60).to_bytes(8)):
        (tmp_path / "message").write_bytes(content)
        assert Mailbox(tmp_path).stage is Stage.EMPTY


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"node_id": "x"}', b"\xff", b"{}"])
def test_a_damaged_node_file_is_no_node(tmp_path, content):
    mailbox = Mailbox(tmp_path)
    mailbox.remember_node("a:1", b"key", 2**64 - 1)
    assert mailbox.node_id("a:1", b"key") == 2**64 - 1
    (tmp_path / "node.json").write_bytes(content)
    assert mailbox.node_id("a:1", b"key") == 0
