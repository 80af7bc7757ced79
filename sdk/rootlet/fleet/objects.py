"""Flower's object format: a message as a tree of content-addressed objects.

An object is `Type SP child,child SP length NUL body`; its id is the SHA-256 of those bytes, in hex.

```
Message ── RecordDict ─┬─ ArrayRecord ── Array ── ArrayChunk (at most 5 MiB of .npy bytes)
                       ├─ MetricRecord
                       └─ ConfigRecord
```

Bodies of RecordDict, ArrayRecord and Array are JSON; of Message, MetricRecord and ConfigRecord
protobuf. A repeated part has one object, referred to more than once.

Formal guarantees of decoding: every object's hash, declared length and children are checked; the
tree is five deep by construction, so cycles cannot be followed; what is read never exceeds
`Limits`, however often an object is referred to; nothing is unpickled or imported by name.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from rootlet.errors import ProtocolError
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.npy import from_npy, to_npy
from rootlet.fleet.records import (
    VALUE_DECODERS,
    ArrayRecord,
    Record,
    Records,
    encode_values,
)

CHUNK_BYTES = 5 * 2**20
"""Flower's bound on the `.npy` bytes in one ArrayChunk."""

_OBJECT_ID = re.compile(r"[0-9a-f]{64}")
_STYPE = "numpy.ndarray"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a device is willing to receive in one message.

    Attributes:
        objects: Nodes of the object tree, repetitions counted.
        object_bytes: Bytes of one object, head included.
        message_bytes: Bytes of all objects of a message, repetitions counted.
        values_bytes: Bytes of its metric and config records, which grow when decoded.
    """

    objects: int = 10_000
    object_bytes: int = CHUNK_BYTES + 64 * 1024
    message_bytes: int = 256 * 2**20
    values_bytes: int = 2**20

    def __post_init__(self) -> None:
        for name in ("objects", "object_bytes", "message_bytes", "values_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


DEFAULT_LIMITS = Limits()


@dataclass
class ObjectSet:
    """Objects by id, children before parents.

    Attributes:
        contents: Bytes of each object, by id.
        children: Ids of each object's children.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, children: list[str], body: bytes) -> str:
        """Add an object and return its id."""
        unique = list(dict.fromkeys(children))
        content = b"%s %s %d\0%b" % (kind.encode(), ",".join(unique).encode(), len(body), body)
        object_id = hashlib.sha256(content).hexdigest()
        self.contents[object_id] = content
        self.children[object_id] = unique
        return object_id

    def tree(self, object_id: str) -> Any:
        """Return the ObjectTree below an object."""
        children = [self.tree(child) for child in self.children[object_id]]
        return MESSAGES["ObjectTree"](object_id=object_id, children=children)

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(map(len, self.contents.values()))


def add_record(objects: ObjectSet, record: Record) -> str:
    """Add a record's objects and return the record's id."""
    if not isinstance(record, ArrayRecord):
        return objects.add(type(record).__name__, [], encode_values(record))
    arrays: dict[str, str] = {}
    for name, array in record.items():
        raw = to_npy(array)
        chunks = [
            objects.add("ArrayChunk", [], raw[start : start + CHUNK_BYTES])
            for start in range(0, len(raw), CHUNK_BYTES)
        ]
        unique = list(dict.fromkeys(chunks))
        description = {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "stype": _STYPE,
            "arraychunk_ids": [unique.index(chunk) for chunk in chunks],
        }
        arrays[name] = objects.add("Array", unique, json.dumps(description).encode())
    return objects.add("ArrayRecord", list(arrays.values()), json.dumps(arrays).encode())


def encode_message(message: Any, records: Records | None) -> tuple[ObjectSet, str]:
    """Return the objects of a message and its id.

    Args:
        message: A protobuf Message with metadata (its `message_id` empty) and, where the message
            reports an error, with the error; never with content.
        records: The content; None where the message reports an error.
    """
    objects = ObjectSet()
    children = []
    if records is not None:
        ids = {name: add_record(objects, record) for name, record in records.items()}
        children = [objects.add("RecordDict", list(ids.values()), json.dumps(ids).encode())]
    body = message.SerializeToString(deterministic=True)
    return objects, objects.add("Message", children, body)


def records_bytes(records: Records) -> int:
    """Return the bytes of the objects that carry these records."""
    objects = ObjectSet()
    for record in records.values():
        add_record(objects, record)
    return objects.n_bytes


def tree_ids(tree: Any, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Return the distinct object ids of an ObjectTree, root first.

    Raises:
        ProtocolError: An id that is not a SHA-256, or more nodes than `limits.objects`.
    """
    ids: dict[str, None] = {}
    pending, count = [tree], 0
    while pending:
        node = pending.pop()
        count += 1
        if count > limits.objects:
            raise ProtocolError(f"an object tree of more than {limits.objects} nodes")
        if not _OBJECT_ID.fullmatch(node.object_id):
            raise ProtocolError(f"an object id that is not a SHA-256: {node.object_id!r:.80}")
        ids[node.object_id] = None
        pending.extend(reversed(node.children))
    return list(ids)


def check_object(object_id: str, content: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check an object's size and hash.

    Raises:
        ProtocolError: It is larger than `limits.object_bytes`, or does not match its id.
    """
    if len(content) > limits.object_bytes:
        raise ProtocolError(
            f"object {object_id} has {len(content)} bytes; the limit is {limits.object_bytes}"
        )
    if hashlib.sha256(content).hexdigest() != object_id:
        raise ProtocolError(f"object {object_id} does not match its hash")


@dataclass(frozen=True)
class _Parsed:
    """An object taken apart."""

    kind: str
    children: list[str]
    body: bytes


def decode_message(
    root: str, contents: dict[str, bytes], limits: Limits = DEFAULT_LIMITS
) -> tuple[Any, Records | None]:
    """Return the protobuf Message and the records below `root`.

    Args:
        root: Id of the Message object.
        contents: Every object below it, by id; the hashes were checked by `check_object`.
        limits: Bounds on what is assembled.

    Returns:
        The Message (metadata, error) and its records; None where it reports an error.

    Raises:
        ProtocolError: Anything malformed or beyond the limits.
    """
    return _Decoder(contents, limits).message(root)


class _Decoder:
    """One decoding: the objects, and how much may still be read, repetitions counted."""

    def __init__(self, contents: dict[str, bytes], limits: Limits) -> None:
        self._contents = contents
        self._objects_left = limits.objects
        self._bytes_left = limits.message_bytes
        self._values_left = limits.values_bytes

    def message(self, root: str) -> tuple[Any, Records | None]:
        parsed = self._read(root, "Message")
        message = MESSAGES["Message"]()
        try:
            message.ParseFromString(parsed.body)
        except DecodeError as error:
            raise ProtocolError(f"message {root} is not protobuf: {error}") from error
        if message.HasField("error"):
            return message, None
        if len(parsed.children) != 1:
            raise ProtocolError(f"message {root} has {len(parsed.children)} contents, not one")
        names = self._references(self._read(parsed.children[0], "RecordDict"))
        return message, {name: self._record(object_id) for name, object_id in names.items()}

    def _record(self, object_id: str) -> Record:
        record = self._read(object_id, "ArrayRecord", *VALUE_DECODERS)
        if record.kind in VALUE_DECODERS:
            self._values_left -= len(record.body)
            if self._values_left < 0:
                raise ProtocolError(f"the message's values outgrow their limit at {object_id}")
            return VALUE_DECODERS[record.kind](record.body)
        names = self._references(record)
        return ArrayRecord({name: self._array(array_id) for name, array_id in names.items()})

    def _array(self, object_id: str) -> np.ndarray:
        parsed = self._read(object_id, "Array")
        description = _json_object(parsed)
        indices = description.get("arraychunk_ids")
        if not isinstance(indices, list) or not all(
            type(index) is int and 0 <= index < len(parsed.children) for index in indices
        ):
            raise ProtocolError(f"array {object_id} refers to chunks that it does not have")
        raw = bytearray()
        for index in indices:
            raw += self._read(parsed.children[index], "ArrayChunk").body
        array = from_npy(raw)
        claimed = (description.get("dtype"), description.get("shape"), description.get("stype"))
        if claimed != (str(array.dtype), list(array.shape), _STYPE):
            raise ProtocolError(
                f"array {object_id} is described as {claimed!r:.120} and holds "
                f"{array.dtype}{list(array.shape)}"
            )
        return array

    def _references(self, parsed: _Parsed) -> dict[str, str]:
        names = _json_object(parsed)
        if not all(isinstance(value, str) for value in names.values()):
            raise ProtocolError(f"a {parsed.kind} refers to something other than objects")
        if set(names.values()) != set(parsed.children):
            raise ProtocolError(f"a {parsed.kind} refers to other objects than its head names")
        return names

    def _read(self, object_id: str, *kinds: str) -> _Parsed:
        content = self._contents.get(object_id)
        if content is None:
            raise ProtocolError(f"object {object_id:.64} is missing from the message")
        self._objects_left -= 1
        self._bytes_left -= len(content)
        if self._objects_left < 0 or self._bytes_left < 0:
            raise ProtocolError(f"the message outgrows its limits at object {object_id}")
        head, divider, body = content.partition(b"\0")
        parts = head.decode("ascii", "replace").split(" ")
        if not divider or len(parts) != 3 or parts[2] != str(len(body)):
            raise ProtocolError(f"object {object_id} has a malformed head")
        if parts[0] not in kinds:
            raise ProtocolError(f"object {object_id} is a {parts[0]:.40}, not a {kinds[0]}")
        return _Parsed(parts[0], [child for child in parts[1].split(",") if child], body)


def _json_object(parsed: _Parsed) -> dict[str, Any]:
    try:
        value = json.loads(parsed.body, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body of a {parsed.kind} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"the body of a {parsed.kind} is not a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)
