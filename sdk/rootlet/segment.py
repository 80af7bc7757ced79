"""One file of observed examples: a header that names their shape, then equal records.

```
"rootlet segment 1" LF | length u32 | JSON {"x": [dtype, shape], "y": [dtype, shape]} | CRC-32 u32
(CRC-32 u32 of the rest of the record | zero u32 | counter u64 | x | y) *
```

All integers are little-endian. Records are only ever appended, so a crash can damage nothing but
the end; the end is cut back to the last whole record when the file is opened for writing.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rootlet.errors import StoreError
from rootlet_runtime.durable import fsync_folder
from rootlet_runtime.manifest import TensorSpec

MAGIC = b"rootlet segment 1\n"
_CRC_BYTES = 4

Records = npt.NDArray[np.void]


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
                ("zero", "<u4"),
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

    def pack(self, examples: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> bytes:
        """The records of ``(counter, x, y)`` triples, in their order."""
        records = np.zeros(len(examples), self.dtype)
        for record, (counter, x, y) in zip(records, examples, strict=True):
            record["counter"], record["x"], record["y"] = counter, x, y
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
            raise StoreError(
                f"{path} holds examples of another shape or dtype than this bundle's "
                f"x {self.dtype['x']} and y {self.dtype['y']}: "
                "give the bundle another state directory, or erase() the old examples"
            )
        whole = (len(raw) - len(self.header)) // self.dtype.itemsize
        records = np.frombuffer(raw, self.dtype, whole, len(self.header))
        good = np.array([record["crc"] == _checksum(record) for record in records], bool)
        last = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
        return records[good], len(self.header) + last * self.dtype.itemsize


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
