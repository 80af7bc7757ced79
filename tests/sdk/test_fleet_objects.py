"""The object codec against flwr's own, and against hostile bytes."""

import hashlib
import json
import time

import numpy as np
import pytest
from flwr import app as flwr
from flwr.app.metadata import Metadata
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rootlet.errors import ProtocolError, RecordError
from rootlet.fleet.decode import decode_message
from rootlet.fleet.envelope import Answer, Envelope, open_envelope, seal_reply
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.npy import ALLOWED_DTYPES, from_npy, to_npy
from rootlet.fleet.objects import (
    CHUNK_BYTES,
    Limits,
    ObjectSet,
    add_record,
    check_object,
    encode_message,
    records_bytes,
    tree_ids,
)
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord

CREATED_AT = 1_800_000_000.0

names = st.text(min_size=1, max_size=12)
int64 = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
numbers = st.one_of(int64, floats, st.lists(int64, min_size=1), st.lists(floats, min_size=1))
settings_values = st.one_of(
    st.booleans(), int64, floats, st.text(), st.binary(), st.lists(st.text(), min_size=1),
    st.lists(st.booleans(), min_size=1), st.lists(st.binary(), min_size=1),
)  # fmt: skip
arrays = npst.arrays(
    st.sampled_from(list(ALLOWED_DTYPES.values())),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
contents = st.fixed_dictionaries(
    {
        "arrays": st.dictionaries(names, arrays, max_size=4).map(ArrayRecord),
        "metrics": st.dictionaries(names, numbers, max_size=4).map(MetricRecord),
        "config": st.dictionaries(names, settings_values, max_size=4).map(ConfigRecord),
    }
)


def metadata(**changes):
    values = {
        "run_id": 7,
        "src_node_id": 1,
        "dst_node_id": 2**63 + 5,
        "group_id": "3",
        "message_type": "train",
        "ttl": 60.0,
        "created_at": CREATED_AT,
    }
    return MESSAGES["Metadata"](**(values | changes))


def encode(records):
    return encode_message(MESSAGES["Message"](metadata=metadata()), records)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, record in left.items():
        assert type(record) is type(right[name])
        assert record.keys() == right[name].keys()
        for key, value in record.items():
            if isinstance(value, np.ndarray):
                assert value.dtype == right[name][key].dtype
                np.testing.assert_array_equal(value, right[name][key])
            else:
                assert value == right[name][key]


def to_flwr(records):
    return flwr.RecordDict(
        {
            "arrays": flwr.ArrayRecord({k: flwr.Array(v) for k, v in records["arrays"].items()}),
            "metrics": flwr.MetricRecord(dict(records["metrics"])),
            "config": flwr.ConfigRecord(dict(records["config"])),
        }
    )


def flwr_message(content):
    from flwr.app.message import make_message

    made = Metadata(
        run_id=7, message_id="", src_node_id=1, dst_node_id=2**63 + 5, reply_to_message_id="",
        group_id="3", created_at=CREATED_AT, ttl=60.0, message_type="train",
    )  # fmt: skip
    return make_message(metadata=made, content=content)


@settings(max_examples=40, deadline=None)
@given(contents)
def test_flwr_reads_what_we_write(records):
    objects, root = encode(records)
    for content in objects.contents.values():
        validate_object_content(content)
    message = inflate_object_from_contents(root, dict(objects.contents))
    assert message.metadata.dst_node_id == 2**63 + 5
    read = {
        "arrays": ArrayRecord({k: v.numpy() for k, v in message.content["arrays"].items()}),
        "metrics": MetricRecord(message.content["metrics"]),
        "config": ConfigRecord(message.content["config"]),
    }
    assert_same(records, read)


@settings(max_examples=40, deadline=None)
@given(contents)
def test_we_read_what_flwr_writes(records):
    message = flwr_message(to_flwr(records))
    contents = {oid: obj.deflate() for oid, obj in get_all_nested_objects(message).items()}
    assert set(tree_ids(get_object_tree(message))) == set(contents)
    decoded, read = decode_message(message.object_id, contents)
    assert decoded.metadata.run_id == 7
    assert_same(records, read)


def test_arrays_have_the_ids_that_flwr_gives_them():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    objects = ObjectSet()
    record = add_record(objects, ArrayRecord(weight=array))
    assert record == flwr.ArrayRecord({"weight": flwr.Array(array)}).object_id


def test_large_and_repeated_chunks_agree_with_flwr():
    array = np.zeros(2 * CHUNK_BYTES // 4 + 1000, np.float32)  # two full chunks and a rest
    array[0] = 1
    objects = ObjectSet()
    record = add_record(objects, ArrayRecord(a=array, b=array))
    theirs = flwr.ArrayRecord({"a": flwr.Array(array), "b": flwr.Array(array)})
    assert record == theirs.object_id
    assert set(objects.contents) == set(get_all_nested_objects(theirs))
    assert objects.n_bytes < 1.01 * array.nbytes  # the second array costs nothing


def test_reply_and_error_are_read_by_flwr():
    tree = MESSAGES["ObjectTree"](object_id="0" * 64)
    request = Envelope(metadata(message_id="0" * 64), tree)
    answers = (
        Answer({"metrics": MetricRecord({"num-examples": 3})}),
        Answer({}, "no such bundle", 1001),
    )
    for answer in answers:
        reply = seal_reply(request, answer, now=time.time())
        message = inflate_object_from_contents(reply.message_id, dict(reply.contents))
        assert message.metadata.reply_to_message_id == request.message_id
        assert message.metadata.src_node_id == 2**63 + 5
        assert message.has_error() == bool(answer.error)
        assert reply.message.HasField("content") == (not answer.error)
        if answer.error:
            assert (message.error.code, message.error.reason) == (1001, "no such bundle")


def test_reply_expires_with_its_request():
    tree = MESSAGES["ObjectTree"](object_id="0" * 64)
    request = Envelope(metadata(message_id="0" * 64, created_at=1000.0, ttl=50.0), tree)
    reply = seal_reply(request, Answer({"metrics": MetricRecord(a=1)}), now=1030.0)
    sent = reply.message.metadata
    assert (sent.created_at, sent.ttl) == (1030.0, 20.0)


def test_values_that_cannot_travel_are_refused():
    for record in (
        MetricRecord(a="text"),
        MetricRecord(a=True),
        ConfigRecord(a=None),
        ConfigRecord(a=2**64),
        ConfigRecord(a=[1, "2"]),
        ArrayRecord(a=np.array([object()])),
        ArrayRecord(a=np.zeros(1, ">f4")),
    ):
        with pytest.raises(RecordError):
            records_bytes({"record": record})


def test_uint64_travels():
    objects, root = encode({"config": ConfigRecord(a=2**64 - 1)})
    assert decode_message(root, objects.contents)[1] == {"config": {"a": 2**64 - 1}}


# -- hostile input -----------------------------------------------------------------------------


def message_with(build):
    objects = ObjectSet()
    record = build(objects)
    name, record_id = record
    dictionary = objects.add("RecordDict", [record_id], json.dumps({name: record_id}).encode())
    body = MESSAGES["Message"](metadata=metadata()).SerializeToString()
    return objects, objects.add("Message", [dictionary], body)


def array_message(raw=b"", *, description=None, indices=(0,)):
    def build(objects):
        chunk = objects.add("ArrayChunk", [], raw)
        body = {
            "dtype": "float32",
            "shape": [2],
            "stype": "numpy.ndarray",
            "arraychunk_ids": list(indices),
        } | (description or {})
        array = objects.add("Array", [chunk], json.dumps(body).encode())
        refs = json.dumps({"a": array}).encode()
        return "arrays", objects.add("ArrayRecord", [array], refs)

    return message_with(build)


GOOD = to_npy(np.ones(2, np.float32))


def test_the_hostile_builder_can_build_a_good_message():
    objects, root = array_message(GOOD)
    _, records = decode_message(root, objects.contents)
    np.testing.assert_array_equal(records["arrays"]["a"], np.ones(2))
    records["arrays"]["a"][0] = 5  # writable, without a copy


@pytest.mark.parametrize(
    ("raw", "description", "indices", "reason"),
    [
        (GOOD, {"shape": [3]}, (0,), "described"),
        (GOOD, {"dtype": "object"}, (0,), "described"),
        (GOOD, {"stype": "pickle"}, (0,), "described"),
        (GOOD, None, (1,), "chunks"),
        (GOOD, None, (-1,), "chunks"),
        (GOOD, None, (True,), "chunks"),
        (GOOD, {"arraychunk_ids": "0"}, (0,), "chunks"),
        (GOOD, {"arraychunk_ids": None}, (0,), "chunks"),
        (GOOD[:-1], None, (0,), "bytes of data"),
        (GOOD + b"x", None, (0,), "bytes of data"),
        (b"", None, (0,), "begin like"),
        (b"\x80\x04pickle", None, (0,), "begin like"),
        (GOOD, None, (0, 0), "bytes of data"),
    ],
)
def test_hostile_arrays_are_refused(raw, description, indices, reason):
    objects, root = array_message(raw, description=description, indices=indices)
    with pytest.raises(ProtocolError, match=reason):
        decode_message(root, objects.contents)


def npy(header: bytes, data: bytes = b"") -> bytearray:
    return bytearray(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<U999', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '>f4', 'fortran_order': False, 'shape': (0,), }\n",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999999,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n" % (b"1, " * 40),
        b"{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (0,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2**40,), }\n",
        b"(" * 2000,
        b"",
        b"\xff\xfe",
    ],
)
def test_hostile_npy_headers_are_refused(header):
    with pytest.raises(ProtocolError):
        from_npy(npy(header, b"\0\0\0\0"))


def test_oversized_npy_header_is_refused():
    with pytest.raises(ProtocolError, match="header of 60000"):
        from_npy(npy(b"{" * 60000))


@given(st.binary(max_size=300))
def test_random_bytes_never_become_an_array_or_crash(raw):
    with pytest.raises(ProtocolError):
        from_npy(bytearray(raw))


def test_a_chunk_repeated_endlessly_is_stopped_before_it_is_assembled():
    objects, root = array_message(bytes(2**20), indices=[0] * 2000)  # 2 GB from 1 MB
    with pytest.raises(ProtocolError, match="outgrows"):
        decode_message(root, objects.contents, Limits(message_bytes=16 * 2**20))


def test_an_array_repeated_endlessly_is_stopped():
    def build(objects):
        chunk = objects.add("ArrayChunk", [], GOOD)
        body = {"dtype": "float32", "shape": [2], "stype": "numpy.ndarray", "arraychunk_ids": [0]}
        array = objects.add("Array", [chunk], json.dumps(body).encode())
        refs = {str(number): array for number in range(1000)}
        return "arrays", objects.add("ArrayRecord", [array], json.dumps(refs).encode())

    objects, root = message_with(build)
    with pytest.raises(ProtocolError, match="outgrows"):
        decode_message(root, objects.contents, Limits(objects=500))


def test_large_values_are_refused_before_they_are_decoded():
    objects, root = encode({"config": ConfigRecord(a=b"x" * 2000)})
    with pytest.raises(ProtocolError, match="values outgrow"):
        decode_message(root, objects.contents, Limits(values_bytes=1000))


@pytest.mark.parametrize(
    "body", [b"[]", b"not json", b"[" * 100_000, b'{"a": 1}', b'{"a": "x", "a": "x"}', b"\xff"]
)
def test_hostile_record_bodies_are_refused(body):
    def build(objects):
        return "arrays", objects.add("ArrayRecord", [], body)

    objects, root = message_with(build)
    with pytest.raises(ProtocolError):
        decode_message(root, objects.contents)


def test_wrong_kinds_missing_objects_and_bad_heads_are_refused():
    objects, root = encode({"metrics": MetricRecord(a=1)})
    record = next(oid for oid, content in objects.contents.items() if content.startswith(b"Metric"))
    with pytest.raises(ProtocolError, match="missing"):
        decode_message("0" * 64, objects.contents)
    with pytest.raises(ProtocolError, match="not a Message"):
        decode_message(record, objects.contents)
    without = {oid: content for oid, content in objects.contents.items() if oid != record}
    with pytest.raises(ProtocolError, match="missing"):
        decode_message(root, without)
    for head in (b"", b"Message", b"Message  5", b"Message  x\0", b"Message  9\0abc"):
        with pytest.raises(ProtocolError, match="malformed head"):
            decode_message(root, {root: head})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_a_protocol_error(data):
    objects, _ = encode(
        {"arrays": ArrayRecord(a=np.ones(3, np.float32)), "config": ConfigRecord(b="c", d=[1, 2])}
    )
    victim = data.draw(st.sampled_from(sorted(objects.contents)))
    content = bytearray(objects.contents[victim])
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError, match="hash"):
        check_object(victim, bytes(content))


def test_objects_and_trees_have_limits():
    with pytest.raises(ProtocolError, match="limit is 10"):
        check_object(hashlib.sha256(b"x" * 11).hexdigest(), b"x" * 11, Limits(object_bytes=10))
    leaf = MESSAGES["ObjectTree"](object_id="0" * 64)
    wide = MESSAGES["ObjectTree"](object_id="1" * 64, children=[leaf] * 100)
    assert tree_ids(wide) == ["1" * 64, "0" * 64]
    with pytest.raises(ProtocolError, match="more than 50"):
        tree_ids(wide, Limits(objects=50))
    for bad in ("", "x" * 64, "A" * 64, "0" * 63, "../" + "0" * 61):
        with pytest.raises(ProtocolError, match="SHA-256"):
            tree_ids(MESSAGES["ObjectTree"](object_id=bad))


def test_an_error_where_a_request_belongs_and_another_run_are_refused():
    message = MESSAGES["Message"](metadata=metadata())
    message.error.code = 1
    objects, root = encode_message(message, None)
    with pytest.raises(ProtocolError, match="is an error"):
        open_envelope(Envelope(metadata(message_id=root), objects.tree(root)), objects.contents)
    objects, root = encode({"metrics": MetricRecord(a=1)})
    announced = Envelope(metadata(message_id=root, run_id=8), objects.tree(root))
    with pytest.raises(ProtocolError, match="another run"):
        open_envelope(announced, objects.contents)


def test_an_envelope_for_another_node_or_with_another_tree_is_refused():
    objects, root = encode({"metrics": MetricRecord(a=1)})
    envelope = Envelope(metadata(message_id=root), objects.tree(root))
    envelope.check(2**63 + 5)
    with pytest.raises(ProtocolError, match="handed to node 3"):
        envelope.check(3)
    with pytest.raises(ProtocolError, match="another one"):
        Envelope(metadata(message_id="0" * 64), objects.tree(root)).check(2**63 + 5)
