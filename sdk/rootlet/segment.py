"""One file of observed examples: a header that names their shape, then equal records.

```
"rootlet segment 1" LF | length u32 | JSON {"x": [dtype, shape], "y": [dtype, shape]} | CRC-32 u32
(CRC-32 u32 of the rest of the record | time u32 | counter u64 | x | y) *
```

All integers are little-endian; ``time`` is that of the observation in seconds since 1970, 0 where
it is not known. Records are only ever appended, so a crash can damage nothing but the end; the end
is cut back to the last whole record when the file is opened for writing.

`rootlet.sealed_segment` has the same records, encrypted.
"""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rootlet.errors import StoreError
from rootlet_runtime.durable import fsync_folder
from rootlet_runtime.manifest import TensorSpec

MAGIC = b"rootlet segment 1\n"
_CRC_BYTES = 4

Records = npt.NDArray[np.void]


class Observed(NamedTuple):
    """One example: its number, when it was observed in seconds since 1970, input and target."""

    counter: int
    time: int
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SegmentEnd:
    """What is known of a segment.

    Attributes:
        first: Number that names the file; none of its examples has a lower one.
        header: The bytes that the file begins with.
        count: Its records.
        tag: What the last record is authenticated by; empty where nothing is sealed.
        newest: When its last example was observed, in seconds since 1970.
    """

    first: int
    header: bytes
    count: int = 0
    tag: bytes = b""
    newest: int = 0


class SegmentForm(Protocol):
    """How the records of a store lie in files.

    Attributes:
        suffix: Of the files.
        dtype: Of a record in memory.
        record_bytes: Of a record in a file.
    """

    suffix: str
    dtype: np.dtype[Any]
    record_bytes: int

    def begin(self, first: int) -> SegmentEnd:
        """A new segment."""

    def pack(self, end: SegmentEnd, examples: Sequence[Observed]) -> tuple[bytes, SegmentEnd]:
        """The records of examples that follow ``end``, and where the segment then ends."""

    def read(self, path: Path, end: SegmentEnd) -> Records:
        """The records of a segment up to ``end``.

        Raises:
            StoreError: They cannot be trusted.
        """

    def recover(self, path: Path, end: SegmentEnd | None) -> tuple[Records, SegmentEnd, int]:
        """The newest segment after whatever happened, when nothing appends to it.

        Args:
            path: The file.
            end: What is known to be durable; None where the file is not known.

        Returns:
            Its records, where it ends, and how many bytes that is; what follows is to be cut off.

        Raises:
            StoreError: What is known to be durable is not there, or cannot be trusted.
        """


class RecordFormat:
    """How one example lies in a file: the record's dtype and the header that declares it.

    Args:
        x_spec: The bundle's input; its first dimension is the batch.
        y_spec: The bundle's target; its first dimension is the batch.
    """

    def __init__(self, x_spec: TensorSpec, y_spec: TensorSpec) -> None:
        x_shape, y_shape = _example_shape(x_spec), _example_shape(y_spec)
        x_dtype, y_dtype = _little_endian(x_spec), _little_endian(y_spec)
        self.dtype = np.dtype(
            [
                ("crc", "<u4"),
                ("time", "<u4"),
                ("counter", "<u8"),
                ("x", x_dtype, x_shape),
                ("y", y_dtype, y_shape),
            ]
        )
        schema = json.dumps({"x": [x_dtype.str, x_shape], "y": [y_dtype.str, y_shape]}).encode()
        self.header = (
            MAGIC
            + len(schema).to_bytes(4, "little")
            + schema
            + zlib.crc32(schema).to_bytes(4, "little")
        )

    def records(self, examples: Sequence[Observed]) -> Records:
        """Examples as records without their checksums, in their order."""
        records = np.zeros(len(examples), self.dtype)
        for record, (counter, time, x, y) in zip(records, examples, strict=True):
            record["counter"], record["time"] = counter, time
            record["x"], record["y"] = x, y
        return records

    def pack(self, examples: Sequence[Observed]) -> bytes:
        """The records of examples, in their order."""
        records = self.records(examples)
        for record in records:
            record["crc"] = _checksum(record)
        return records.tobytes()

    def read(self, path: Path) -> tuple[Records, int]:
        """The whole records of a file and the number of bytes they and the header span.

        A record whose checksum fails is left out; bytes beyond the last good record are not
        counted.

        Raises:
            StoreError: The file was written for another bundle's shapes.
        """
        raw = path.read_bytes()
        if not raw.startswith(self.header):
            if self.header.startswith(raw):
                return np.zeros(0, self.dtype), 0
            raise self.of_another_shape(path)
        whole = (len(raw) - len(self.header)) // self.dtype.itemsize
        records = np.frombuffer(raw, self.dtype, whole, len(self.header))
        good = np.array([record["crc"] == _checksum(record) for record in records], bool)
        last = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
        return records[good], len(self.header) + last * self.dtype.itemsize

    def of_another_shape(self, path: Path) -> StoreError:
        """What is raised where a file was written for another bundle's shapes."""
        return StoreError(
            f"{path} holds examples of another shape or dtype than this bundle's "
            f"x {self.dtype['x']} and y {self.dtype['y']}: "
            "give the bundle another state directory, or erase() the old examples"
        )


class PlainSegments:
    """A `SegmentForm` without encryption: damage costs the records that it hits.

    Args:
        record: What a record is.
    """

    suffix = ".segment"

    def __init__(self, record: RecordFormat) -> None:
        self._record = record
        self.dtype = record.dtype
        self.record_bytes = record.dtype.itemsize

    def begin(self, first: int) -> SegmentEnd:
        """A new segment."""
        return SegmentEnd(first=first, header=self._record.header)

    def found(self, path: Path) -> SegmentEnd:
        """A segment as its size and its time tell it."""
        stat = path.stat()
        count = max(0, stat.st_size - len(self._record.header)) // self.record_bytes
        return replace(self.begin(int(path.stem)), count=count, newest=int(stat.st_mtime))

    def pack(self, end: SegmentEnd, examples: Sequence[Observed]) -> tuple[bytes, SegmentEnd]:
        """The records of examples that follow ``end``, and where the segment then ends."""
        count, newest = end.count + len(examples), examples[-1].time
        return self._record.pack(examples), replace(end, count=count, newest=newest)

    def read(self, path: Path, end: SegmentEnd) -> Records:
        """The whole records; a time that is not known is the file's."""
        del end
        records, _ = self._record.read(path)
        records["time"][records["time"] == 0] = int(path.stat().st_mtime)
        return records

    def recover(self, path: Path, end: SegmentEnd | None) -> tuple[Records, SegmentEnd, int]:
        """The whole records, where they end, and their bytes; 0 where no header is whole."""
        records, size = self._record.read(path)
        count = max(0, size - len(self._record.header)) // self.record_bytes
        return records, replace(end or self.found(path), count=count), size


class SegmentWriter:
    """Appends records to one file; every failure leaves the file at its last whole record."""

    def __init__(self, path: Path, header: bytes, size: int) -> None:
        """Opens ``path`` and cuts it to ``size`` bytes; a size of 0 begins it anew."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = size
        try:
            os.ftruncate(self._file, size)
            if size == 0:
                self.append(header)
                fsync_folder(path.parent)
        except OSError:  # the store tries again every second: none of them may stay open
            self.close()
            raise

    def append(self, raw: bytes) -> None:
        """Writes all of ``raw`` and waits until the medium has it.

        Raises:
            OSError: The medium refused; what had been written of ``raw`` was cut off again.
        """
        try:
            written = 0
            while written < len(raw):
                written += os.pwrite(self._file, raw[written:], self._size + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(raw)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[_CRC_BYTES:])


def _example_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if size is not None)


def _little_endian(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")
