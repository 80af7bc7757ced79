"""What class files refer to (Java Virtual Machine Specification, chapter 4.4)."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_CLASS, _FIELD, _METHOD, _INTERFACE_METHOD, _NAME_AND_TYPE, _UTF8 = 7, 9, 10, 11, 12, 1
_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4,
          18: 4, 19: 2, 20: 2}  # fmt: skip

_ANNOTATION = 0x2000

_IN_DESCRIPTOR = re.compile(r"L([\w/$-]+);")


@dataclass(frozen=True)
class References:
    """Of one class file.

    Attributes:
        name: The class's own, like ``java/lang/String``.
        classes: Other classes that it names, arrays and descriptors included.
        members: ``(class, member)`` that it calls or reads; a member is its name and descriptor.
    """

    name: str
    classes: frozenset[str]
    members: frozenset[tuple[str, str]]


def references(content: bytes) -> References:
    """Reads the constant pool.

    Raises:
        ValueError: Not a class file.
    """
    if content[:4] != b"\xca\xfe\xba\xbe":
        raise ValueError("not a class file")
    pool, end = _pool(content)

    def text(index: int) -> str:
        return str(pool[index][1].decode("utf-8", "replace"))

    def class_name(index: int) -> str:
        return text(_short(pool[index][1], 0))

    classes: set[str] = set()
    members: set[tuple[str, str]] = set()
    for tag, raw in pool.values():
        if tag == _CLASS:
            classes |= set(_classes_in(text(_short(raw, 0))))
        elif tag in {_FIELD, _METHOD, _INTERFACE_METHOD}:
            owner, pair = class_name(_short(raw, 0)), pool[_short(raw, 2)][1]
            members.add((owner, text(_short(pair, 0)) + text(_short(pair, 2))))
        elif tag == _NAME_AND_TYPE:
            classes |= set(_classes_in(text(_short(raw, 2))))
    own = class_name(_short(content, end + 2))
    return References(own, frozenset(classes), frozenset(members))


def is_annotation(content: bytes) -> bool:
    """Whether a class file declares an annotation."""
    return bool(_short(content, _pool(content)[1]) & _ANNOTATION)


def _pool(content: bytes) -> tuple[dict[int, tuple[int, bytes]], int]:
    pool: dict[int, tuple[int, bytes]] = {}
    index, at, count = 1, 10, _short(content, 8)
    while index < count:
        tag = content[at]
        size = _short(content, at + 1) if tag == _UTF8 else _SIZES[tag]
        start = at + (3 if tag == _UTF8 else 1)
        pool[index] = (tag, content[start : start + size])
        at = start + size
        index += 2 if tag in {5, 6} else 1
    return pool, at


def _classes_in(text: str) -> Iterator[str]:
    """The classes in a name or a descriptor."""
    if text.startswith(("(", "[")) or text.endswith(";"):
        yield from _IN_DESCRIPTOR.findall(text)
    elif len(text) > 1:
        yield text


def _short(raw: bytes, at: int) -> int:
    return int(struct.unpack_from(">H", raw, at)[0])
