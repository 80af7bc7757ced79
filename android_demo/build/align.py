"""Lays an APK out so that its native libraries are mapped as they lie, and checks that they can be.

Phones with pages of 16 KB map a stored library only where it begins on such a page, and load it
only where its own segments are aligned to one. Debian's zipalign knows pages of 4 KB.
"""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fetch import BuildError

PAGE = 16 * 1024
WORD = 4
_PADDING = 0xD935
"""The extra field that apksigner, too, aligns by: the alignment, then zeros."""
_LOCAL_HEADER, _PT_LOAD = 30, 1


class Entry(NamedTuple):
    """One file of an APK."""

    name: str
    content: bytes
    stored: bool


def write_aligned(entries: Iterable[Entry], target: Path, page: int = PAGE) -> None:
    """Writes an APK; stored libraries begin on a page, all else that is stored on 4 bytes."""
    with target.open("wb") as file, zipfile.ZipFile(file, "w") as apk:
        for name, content, stored in entries:
            info = zipfile.ZipInfo(name)  # dated 1980: the same files give the same bytes
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            if stored:
                alignment = page if name.endswith(".so") else WORD
                start = file.tell() + _LOCAL_HEADER + len(name.encode()) + 6
                padding = bytes(-start % alignment)
                extra = struct.pack("<HHH", _PADDING, 2 + len(padding), alignment) + padding
                info.extra = extra
            apk.writestr(info, content)
            info.extra = b""  # the directory at the end needs none


def check_aligned(apk: Path, page: int = PAGE) -> None:
    """Holds where stored entries begin, and the libraries' own segments, to the page.

    Raises:
        BuildError: Names the entry and where it begins, or the segment's alignment.
    """
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as raw:
        for info in archive.infolist():
            library = info.filename.endswith(".so")
            if info.compress_type != zipfile.ZIP_STORED:
                if library:
                    raise BuildError(f"{info.filename} is compressed; it cannot be mapped")
                continue
            raw.seek(info.header_offset)
            name, extra = struct.unpack_from("<HH", raw.read(_LOCAL_HEADER), 26)
            start = info.header_offset + _LOCAL_HEADER + name + extra
            alignment = page if library else WORD
            if start % alignment:
                raise BuildError(f"{info.filename} begins at {start}, no multiple of {alignment}")
            if library:
                check_segments(info.filename, archive.read(info), page)


def check_segments(name: str, library: bytes, page: int = PAGE) -> None:
    """Holds the segments of a 64-bit library to the page.

    Raises:
        BuildError: One is aligned to less, or it is no such library.
    """
    if library[:5] != b"\x7fELF\x02":
        raise BuildError(f"{name} is no 64-bit ELF library")
    (table,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    for at in range(table, table + size * count, size):
        kind, alignment = struct.unpack_from("<I44xQ", library, at)
        if kind == _PT_LOAD and alignment % page:
            raise BuildError(f"{name} is built for pages of {alignment} bytes, not {page}")
