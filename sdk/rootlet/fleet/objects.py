"""Flower's object format: a message as a tree of content-addressed objects.

An object is `Type SP child,child SP length NUL body`; its id is the SHA-256 of those bytes, in hex.

```
Message ── RecordDict ─┬─ ArrayRecord ── Array ── ArrayChunk (at most 5 MiB of .npy bytes)
                       ├─ MetricRecord
                       └─ ConfigRecord
```

Bodies of RecordDict, ArrayRecord and Array are JSON; of Message, MetricRecord and ConfigRecord
protobuf. A repeated part has one object, referred to more than once.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from rootlet.errors import ProtocolError
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.npy import to_npy
from rootlet.fleet.records import (
    ArrayRecord,
    Record,
    Records,
    encode_values,
)

CHUNK_BYTES = 5 * 2**20
"""Flower's bound on the `.npy` bytes in one ArrayChunk."""

_OBJECT_ID = re.compile(r"[0-9a-f]{64}")
STYPE = "numpy.ndarray"
"""Flower's name for arrays that travel as `.npy` bytes."""


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
            "stype": STYPE,
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
