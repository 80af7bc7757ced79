"""A small bounded reader of FlatBuffers, for LiteRT models that are not trusted yet.

FlatBuffers are made to be read in place: a table is a position, and every reference in it is an
offset that a fast reader follows without looking. Here each offset, length and alignment is checked
before it is followed, and a field that is not in the caller's table of fields is refused, so that
two parsers cannot disagree about what the bytes say. Nothing here recurses; the caller descends as
far as its tables go.

Source: https://flatbuffers.dev/internals
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Kinds of field. A scalar's kind is its struct format.
INT8, UINT8, BOOL = "b", "B", "?"
INT32, UINT32, FLOAT32 = "i", "I", "f"
TABLE, TABLES, TEXT, BYTES = "table", "tables", "text", "bytes"
INT32S, INT64S, FLOAT32S = "int32s", "int64s", "float32s"

_ELEMENTS: Mapping[str, tuple[int, npt.DTypeLike]] = {
    BYTES: (1, "u1"),
    TEXT: (1, "u1"),
    TABLES: (4, "<u4"),
    INT32S: (4, "<i4"),
    FLOAT32S: (4, "<f4"),
    INT64S: (8, "<i8"),
}
_OFFSET = struct.Struct("<I")
_BACK = struct.Struct("<i")
_MAX_TEXT_BYTES = 65536


class FlatbufferError(ValueError):
    """The bytes are not a flatbuffer of the expected kind."""


@dataclass(frozen=True)
class Field:
    """What a table may hold in one of its slots."""

    name: str
    kind: str


Schema = Mapping[int, Field]
Table = dict[str, Any]


class Reader:
    """Reads tables of one buffer.

    A buffer may refer to the same bytes many times; ``max_objects`` bounds what is read in all.
    """

    def __init__(self, data: memoryview, *, max_objects: int = 1_000_000) -> None:
        self._data = data
        self._left = max_objects

    def root(self, identifier: bytes) -> int:
        """The position of the root table.

        Raises:
            FlatbufferError: too short, or of another file type.
        """
        if len(self._data) < 8 or bytes(self._data[4:8]) != identifier:
            raise FlatbufferError(f"does not carry the file identifier {identifier.decode()!r}")
        return self._follow(0, "the root")

    def table(self, position: int, schema: Schema, kind: str) -> Table:
        """The fields that are present, by name.

        Scalars come as numbers, text as ``str``, bytes as a view, vectors of numbers as arrays, and
        tables as positions to be read in turn.

        Raises:
            FlatbufferError: a field that ``schema`` does not hold, or an offset, length or
                alignment that leads outside the buffer.
        """
        self._count(1)
        slots, end = self._slots(position, kind)
        found: Table = {}
        for slot, offset in enumerate(slots):
            if offset == 0:
                continue
            field = schema.get(slot)
            if field is None:
                raise FlatbufferError(f"{kind}: field {slot} is not allowed")
            found[field.name] = self._field(position + offset, end, field, f"{kind}.{field.name}")
        return found

    def _slots(self, position: int, kind: str) -> tuple[tuple[int, ...], int]:
        """The offset of each field in the table (0 where it is absent), and the table's end."""
        self._check(position, 4, 4, kind)
        start = position - _BACK.unpack_from(self._data, position)[0]
        self._check(start, 4, 2, f"{kind}: the list of fields")
        size, inline = struct.unpack_from("<HH", self._data, start)
        if size < 4 or size % 2 or inline < 4:
            raise FlatbufferError(f"{kind}: a list of fields of {size} bytes for {inline}")
        self._check(start, size, 2, f"{kind}: the list of fields")
        self._check(position, inline, 4, kind)
        self._count(size // 2)
        return struct.unpack_from(f"<{size // 2 - 2}H", self._data, start + 4), position + inline

    def _field(self, position: int, end: int, field: Field, kind: str) -> Any:
        scalar = len(field.kind) == 1
        size = struct.calcsize(field.kind) if scalar else 4
        if position + size > end:
            raise FlatbufferError(f"{kind}: lies outside its table")
        if scalar:
            self._check(position, size, size, kind)
            (value,) = struct.unpack_from(f"<{field.kind}", self._data, position)
            return value
        target = self._follow(position, kind)
        if field.kind == TABLE:
            return target
        return self._vector(target, field.kind, kind)

    def _vector(self, position: int, field_kind: str, kind: str) -> Any:
        self._check(position, 4, 4, kind)
        (count,) = _OFFSET.unpack_from(self._data, position)
        size, dtype = _ELEMENTS[field_kind]
        start = position + 4
        self._check(start, count * size, size, kind)
        view = self._data[start : start + count * size]
        if field_kind == BYTES:
            return view
        self._count(count)
        if field_kind == TEXT:
            return self._text(view, kind)
        elements = np.frombuffer(view, dtype)
        if field_kind == TABLES:
            return tuple(self._follow(start + 4 * i, kind) for i in range(count))
        return elements

    def _text(self, view: memoryview, kind: str) -> str:
        if len(view) > _MAX_TEXT_BYTES:
            raise FlatbufferError(f"{kind}: {len(view)} bytes; at most {_MAX_TEXT_BYTES}")
        try:
            text = bytes(view).decode()
        except UnicodeDecodeError as error:
            raise FlatbufferError(f"{kind}: not UTF-8") from error
        if "\0" in text:  # a reader in C would see it end there
            raise FlatbufferError(f"{kind}: holds a NUL")
        return text

    def _follow(self, position: int, kind: str) -> int:
        """Where the offset at ``position`` points: always forward, so that no loop can be built."""
        self._check(position, 4, 4, kind)
        (offset,) = _OFFSET.unpack_from(self._data, position)
        if offset == 0:
            raise FlatbufferError(f"{kind}: an offset of zero")
        target: int = position + offset
        return target

    def _check(self, position: int, size: int, alignment: int, kind: str) -> None:
        if position < 0 or position + size > len(self._data):
            raise FlatbufferError(
                f"{kind}: {size} bytes at {position} in a buffer of {len(self._data)}"
            )
        if position % alignment:
            raise FlatbufferError(f"{kind}: at {position}, not aligned to {alignment}")

    def _count(self, objects: int) -> None:
        self._left -= objects
        if self._left < 0:
            raise FlatbufferError("refers to more objects than a model has")
