"""A small bounded reader of protobuf's wire format, for ONNX graphs that are not trusted yet.

It knows only what it is told: each message is read against a table of its fields, and a field that
is not in the table, has another wire type, or repeats where it may not, is refused. Two parsers can
then not disagree about what the bytes say. Nothing here recurses; the caller descends as far as its
tables go.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_MAX_TAG = 2**32
_INT64_SIGN = 2**63


class WireError(ValueError):
    """The bytes are not a message of the expected kind."""


@dataclass(frozen=True)
class Field:
    """What a message may hold under one number."""

    name: str
    wire_type: int = BYTES
    repeated: bool = False


Table = Mapping[int, Field]
Value = int | memoryview


def read(message: memoryview, table: Table, kind: str) -> Iterator[tuple[str, Value]]:
    """Yields ``(field name, value)`` in order; packed integers are yielded one by one.

    Raises:
        WireError: truncated, malformed, or holding a field that ``table`` does not allow.
    """
    seen: set[str] = set()
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field = table.get(tag >> 3) if tag < _MAX_TAG else None
        if field is None:
            raise WireError(f"{kind}: field {tag >> 3} is not allowed")
        if field.name in seen and not field.repeated:
            raise WireError(f"{kind}: {field.name} appears twice")
        seen.add(field.name)
        wire_type = tag & 7
        if wire_type == BYTES and field.wire_type == VARINT and field.repeated:
            packed, position = _span(message, position, kind)
            yield from ((field.name, value) for value in _packed(packed))
            continue
        if wire_type != field.wire_type and not (wire_type == BYTES and field.repeated):
            raise WireError(f"{kind}: {field.name} has wire type {wire_type}")
        value, position = _value(message, position, wire_type, kind)
        yield field.name, value


def text(value: Value, kind: str) -> str:
    """A string field as text.

    Raises:
        WireError: not UTF-8, or longer than any name needs to be.
    """
    if not isinstance(value, memoryview) or len(value) > 65536:
        raise WireError(f"{kind}: not a string of at most 65536 bytes")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise WireError(f"{kind}: not UTF-8") from error


def integer(value: Value) -> int:
    """An int64 field: the varint's two's complement."""
    if not isinstance(value, int):
        raise WireError("expected an integer")
    return value - 2 * _INT64_SIGN if value >= _INT64_SIGN else value


def _value(message: memoryview, position: int, wire_type: int, kind: str) -> tuple[Value, int]:
    if wire_type == VARINT:
        return _varint(message, position)
    if wire_type == BYTES:
        return _span(message, position, kind)
    end = position + _FIXED_SIZES[wire_type]
    if end > len(message):
        raise WireError(f"{kind}: truncated")
    return message[position:end], end


def _span(message: memoryview, position: int, kind: str) -> tuple[memoryview, int]:
    length, position = _varint(message, position)
    if length > len(message) - position:
        raise WireError(f"{kind}: a field of {length} bytes in {len(message)}")
    return message[position : position + length], position + length


def _packed(message: memoryview) -> Iterator[int]:
    position = 0
    while position < len(message):
        value, position = _varint(message, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for index in range(10):
        if position >= len(message):
            raise WireError("truncated in the middle of a number")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if result >= 2 * _INT64_SIGN:
                break
            return result, position
    raise WireError("a number of more than 64 bits")
