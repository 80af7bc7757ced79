"""Reading a message's objects, which may be hostile.

Formal guarantees of decoding: every object's hash, declared length and children are checked; the
tree is five deep by construction, so cycles cannot be followed; what is read never exceeds
`Limits`, however often an object is referred to; nothing is unpickled or imported by name.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from rootlet.errors import ProtocolError
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.npy import from_npy
from rootlet.fleet.objects import DEFAULT_LIMITS, STYPE, Limits
from rootlet.fleet.records import VALUE_DECODERS, ArrayRecord, Record, Records


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
        if claimed != (str(array.dtype), list(array.shape), STYPE):
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
