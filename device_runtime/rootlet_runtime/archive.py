"""The bundle's container: a zip of stored entries in one canonical encoding, read as hostile input.

A canonical encoding means that an archive with the same entries has exactly one sequence of bytes:
no compression, no flags, no comments, a fixed time stamp, entries back to back, each one's data
aligned by padding whose content is fixed. The reader parses what it needs, encodes the headers
again and compares: whatever is not content cannot carry information, so that a flipped byte
anywhere is either here or in something that the manifest's hashes cover. Ordinary tools (``unzip``,
Python's ``zipfile``) read the files. The CRC-32 is written for them; a reader of bundles checks
that both copies agree and relies on SHA-256.
"""

import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rootlet_runtime.errors import ArchiveError, SizeLimitError, UnsafePathError

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_PADDING = struct.Struct("<3H")
_PADDING_ID = 0xD935  # the alignment field that Android's zipalign writes
_DOS_DATE = (1 << 5) | 1  # 1 January 1980, the earliest that a zip can say
_VERSION = 10
_STORED = 0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_NAME_BYTES = 4096

ALIGNMENT = 64
LARGE_ALIGNMENT = 4096
_LARGE_ENTRIES = frozenset({"base.bin"})


@dataclass(frozen=True, kw_only=True)
class BundleLimits:
    """What a device is willing to hold; sizes in bytes."""

    max_bundle_bytes: int = 2**30
    max_entries: int = 16
    max_manifest_bytes: int = 2**20
    max_graph_bytes: int = 2**26
    max_adapter_bytes: int = 2**28
    max_state_bytes: int = 2**30

    def for_entry(self, name: str) -> int:
        """The largest size allowed for one entry."""
        if name in ("manifest.json", "manifest.sig"):
            return self.max_manifest_bytes
        if name.endswith(".onnx"):
            return self.max_graph_bytes
        return self.max_adapter_bytes if name == "adapter.safetensors" else self.max_bundle_bytes


@dataclass(frozen=True)
class ArchiveEntry:
    """One stored entry: where its header begins and what it holds."""

    name: str
    crc32: int
    size: int
    header_offset: int

    @property
    def _padding(self) -> bytes:
        alignment = LARGE_ALIGNMENT if self.name in _LARGE_ENTRIES else ALIGNMENT
        unpadded = self.header_offset + _LOCAL.size + len(self.name) + _PADDING.size
        zeros = -unpadded % alignment
        return _PADDING.pack(_PADDING_ID, 2 + zeros, alignment) + bytes(zeros)

    @property
    def local_header(self) -> bytes:
        """The header in front of the data."""
        padding = self._padding
        fixed = _LOCAL.pack(
            b"PK\x03\x04", *self._common, len(self.name), len(padding)
        )  # fmt: skip
        return fixed + self.name.encode() + padding

    @property
    def central_header(self) -> bytes:
        """The entry's line in the directory at the end of the file."""
        tail = (len(self.name), 0, 0, 0, 0, 0, self.header_offset)
        return _CENTRAL.pack(b"PK\x01\x02", _VERSION, *self._common, *tail) + self.name.encode()

    @property
    def data_offset(self) -> int:
        """Where the data begins."""
        return self.header_offset + len(self.local_header)

    @property
    def end_offset(self) -> int:
        """Where the next header begins."""
        return self.data_offset + self.size

    @property
    def _common(self) -> tuple[int, ...]:
        return (_VERSION, 0, _STORED, 0, _DOS_DATE, self.crc32, self.size, self.size)


def directory(entries: list[ArchiveEntry]) -> bytes:
    """The bytes that follow the last entry's data."""
    start = entries[-1].end_offset if entries else 0
    headers = b"".join(entry.central_header for entry in entries)
    count = len(entries)
    return headers + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(headers), start, 0)


class Archive:
    """A mapped archive. The file is opened once; what was verified is what is used.

    The mapping follows the file: whoever may write to it in place can change what is read after it
    was verified. Keep bundles where only the application can write.
    """

    def __init__(self, path: str | os.PathLike[str], limits: BundleLimits) -> None:
        """Maps and checks the file.

        Raises:
            ArchiveError: unreadable, or not in the canonical encoding.
            UnsafePathError: an entry's name is not a plain top-level name.
            SizeLimitError: the file, an entry, or the number of entries exceeds ``limits``.
        """
        self.path = Path(path)
        self._map = _map_file(self.path, limits)
        self._view = memoryview(self._map)
        self._closed = False
        try:
            self.entries = {entry.name: entry for entry in _read_entries(self._view, limits)}
            _check_canonical(self._view, list(self.entries.values()))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> memoryview:
        """The entry's data, as a read-only view of the mapping."""
        if self._closed:
            raise ArchiveError(f"{self.path} is closed; keep a bundle open as long as its trainers")
        entry = self.entries[name]
        return self._view[entry.data_offset : entry.end_offset]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def release_pages(self) -> None:
        """Lets the system take the file's pages back; the next use reads them again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file; views still held elsewhere keep the mapping alive until they go."""
        self._closed = True
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            return


def _map_file(path: Path, limits: BundleLimits) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.max_bundle_bytes:
                raise SizeLimitError(
                    f"{path.name}: {size} bytes; the limit is {limits.max_bundle_bytes} "
                    "(BundleLimits.max_bundle_bytes)"
                )
            if size < _END.size:
                raise ArchiveError(f"{path.name}: {size} bytes; too short to be a bundle")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_entries(view: memoryview, limits: BundleLimits) -> list[ArchiveEntry]:
    signature, _, _, _, count, length, start, _ = _END.unpack(view[-_END.size :])
    if signature != b"PK\x05\x06":
        raise ArchiveError("no zip directory at the end of the file: not a bundle, or truncated")
    if count > limits.max_entries:
        raise SizeLimitError(f"{count} entries; the limit is {limits.max_entries}")
    if start + length != len(view) - _END.size:
        raise ArchiveError("the zip directory is not where the end of the file says")
    entries: list[ArchiveEntry] = []
    offset = start
    for _ in range(count):
        entry, offset = _read_central(view, offset, limits)
        if any(entry.name == other.name for other in entries):
            raise ArchiveError(f"the entry {entry.name!r} appears twice")
        entries.append(entry)
    return entries


def _read_central(view: memoryview, offset: int, limits: BundleLimits) -> tuple[ArchiveEntry, int]:
    if offset + _CENTRAL.size > len(view) - _END.size:
        raise ArchiveError("the zip directory is shorter than its number of entries")
    fields = _CENTRAL.unpack(view[offset : offset + _CENTRAL.size])
    flags, method, crc32, stored, size, name_bytes = (fields[i] for i in (3, 4, 7, 8, 9, 10))
    name_start = offset + _CENTRAL.size
    name = _plain_name(bytes(view[name_start : name_start + min(name_bytes, _MAX_NAME_BYTES)]))
    if flags & 1:
        raise ArchiveError(f"{name}: encrypted; the entries of a bundle are plain")
    if method != _STORED:
        raise ArchiveError(
            f"{name}: compressed (method {method}); the entries of a bundle are stored, "
            "which also keeps an archive from growing when it is read"
        )
    if stored != size:
        raise ArchiveError(f"{name}: {stored} bytes stored but {size} declared")
    if size > limits.for_entry(name):
        raise SizeLimitError(f"{name}: {size} bytes; the limit is {limits.for_entry(name)}")
    return ArchiveEntry(name, crc32, size, fields[16]), name_start + name_bytes


def _plain_name(raw: bytes) -> str:
    name = raw.decode("ascii", errors="backslashreplace")
    if not _PLAIN_NAME.fullmatch(name) or ".." in name:
        raise UnsafePathError(
            f"entry name {name[:100]!r}: the entries of a bundle have plain names at the top level "
            "(letters, digits, '.', '_', '-')"
        )
    return name


def _check_canonical(view: memoryview, entries: list[ArchiveEntry]) -> None:
    offset = 0
    for entry in entries:
        if entry.header_offset != offset:
            raise ArchiveError(f"{entry.name}: begins at {entry.header_offset}, not at {offset}")
        if view[offset : entry.data_offset] != entry.local_header:
            raise ArchiveError(f"{entry.name}: its local header and the directory disagree")
        offset = entry.end_offset
    if view[offset:] != directory(entries):
        raise ArchiveError(
            "the zip directory is not in the canonical encoding of a bundle: damaged, or "
            "written by another tool (bundles are written by rootlet)"
        )
