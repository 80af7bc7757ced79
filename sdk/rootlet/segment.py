"""One file of observed examples: a header that names their shape, then equal records.

```
"rootlet segment 2" LF | length u32 | JSON {"x": [dtype, shape], "y": [dtype, shape], "cipher",
"salt"} | CRC-32 u32 | record *
record: what a cipher makes of (CRC-32 u32 of the rest | zero u32 | counter u64 | time i64 | x | y)
```

All integers are little-endian. Records are only ever appended, so a crash can damage nothing but
the end; the end is cut back to the last whole record when the file is opened for writing.

A record is sealed under the name ``SALT/INDEX``: the segment's 16 random bytes and the record's
place in it. One that is changed, moved or comes from another file does not open, and is left out.
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rootlet.errors import StoreError
from rootlet_runtime.array_files import PLAIN
from rootlet_runtime.durable import fsync_folder
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.manifest import TensorSpec

MAGIC = b"rootlet segment 2\n"
SALT_BYTES = 16
_CRC_BYTES = 4
_LENGTH_BYTES = 4
_MAX_SCHEMA_BYTES = 65_536

Records = npt.NDArray[np.void]


class RecordCipher(Protocol):
    """Seals records, each by as many bytes more."""

    @property
    def name(self) -> str:
        """What the header calls it."""

    @property
    def overhead(self) -> int:
        """Bytes that sealing adds."""

    def seal(self, name: str, plain: bytes) -> bytes:
        """What goes to the disk."""

    def open(self, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            CheckpointError: It was changed, or is of another name or key.
        """


class RecordFormat:
    """How one example lies in a file: the record's dtype and the header that declares it.

    Args:
        x_spec: The bundle's input; its first dimension is the batch.
        y_spec: The bundle's target; its first dimension is the batch.
        cipher: What every record passes through.
    """

    def __init__(
        self, x_spec: TensorSpec, y_spec: TensorSpec, cipher: RecordCipher | None = None
    ) -> None:
        x_shape, y_shape = _example_shape(x_spec), _example_shape(y_spec)
        x_dtype, y_dtype = _little_endian(x_spec), _little_endian(y_spec)
        self.dtype = np.dtype(
            [
                ("crc", "<u4"),
                ("zero", "<u4"),
                ("counter", "<u8"),
                ("time", "<i8"),
                ("x", x_dtype, x_shape),
                ("y", y_dtype, y_shape),
            ]
        )
        self._cipher: RecordCipher = PLAIN if cipher is None else cipher
        self._schema = {
            "x": [x_dtype.str, list(x_shape)],
            "y": [y_dtype.str, list(y_shape)],
            "cipher": self._cipher.name,
        }
        self.header_bytes = len(self.header())
        self.record_bytes = self.dtype.itemsize + self._cipher.overhead

    def header(self, salt: bytes = bytes(SALT_BYTES)) -> bytes:
        """A segment's header."""
        schema = json.dumps(self._schema | {"salt": salt.hex()}).encode()
        length = len(schema).to_bytes(_LENGTH_BYTES, "little")
        return MAGIC + length + schema + zlib.crc32(schema).to_bytes(_CRC_BYTES, "little")

    def pack(
        self, examples: Sequence[tuple[int, int, np.ndarray, np.ndarray]]
    ) -> npt.NDArray[np.void]:
        """The records of ``(counter, time, x, y)``, in their order."""
        records = np.zeros(len(examples), self.dtype)
        for record, (counter, time_s, x, y) in zip(records, examples, strict=True):
            record["counter"], record["time"] = counter, time_s
            record["x"], record["y"] = x, y
            record["crc"] = _checksum(record)
        return records

    def seal(self, records: Records, salt: bytes, first: int) -> bytes:
        """Records as they lie in a file, from its place ``first`` on."""
        return b"".join(
            self._cipher.seal(_name(salt, first + at), record.tobytes())
            for at, record in enumerate(records)
        )

    def salt(self, path: Path) -> bytes | None:
        """A file's salt; None where its header was never whole.

        Raises:
            StoreError: The file was written for another bundle's shapes, or another cipher.
        """
        with path.open("rb") as file:
            raw = file.read(len(MAGIC) + _LENGTH_BYTES + _MAX_SCHEMA_BYTES)
        found = _schema(raw)
        if found is None:
            return None
        salt = bytes.fromhex(found.pop("salt", ""))
        if found != self._schema:
            raise StoreError(
                f"{path} holds examples of another shape or dtype than this bundle's "
                f"x {self.dtype['x']} and y {self.dtype['y']}, or is not encrypted as this device "
                "does it: give the bundle another state directory, or erase() the old examples"
            )
        return salt

    def read(self, path: Path) -> tuple[Records, int]:
        """The whole records of a file and the number of bytes they and the header span.

        A record that does not open, or whose checksum fails, is left out; bytes beyond the last
        good record are not counted.

        Raises:
            StoreError: The file was written for another bundle's shapes, or another cipher.
        """
        salt = self.salt(path)
        if salt is None:
            return np.zeros(0, self.dtype), 0
        raw = path.read_bytes()[self.header_bytes :]
        size = self.record_bytes
        good, last = [], 0
        for at in range(len(raw) // size):
            try:
                plain = self._cipher.open(_name(salt, at), raw[at * size : (at + 1) * size])
            except CheckpointError:
                continue
            record = np.frombuffer(plain, self.dtype)[0]
            if record["crc"] == _checksum(record):
                good.append(plain)
                last = at + 1
        records = np.frombuffer(b"".join(good), self.dtype)
        return records, self.header_bytes + last * size


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


def _schema(raw: bytes) -> dict[str, Any] | None:
    """What a header declares; None where it is not whole.

    Raises:
        StoreError: It is another format's.
    """
    start = len(MAGIC) + _LENGTH_BYTES
    if not raw.startswith(MAGIC[: len(raw)]):
        raise StoreError(
            "the examples were kept by another version of rootlet: erase() them, or give the "
            "device another state directory"
        )
    size = int.from_bytes(raw[len(MAGIC) : start], "little")
    schema, crc = raw[start : start + size], raw[start + size : start + size + _CRC_BYTES]
    if len(raw) < start or zlib.crc32(schema).to_bytes(_CRC_BYTES, "little") != crc:
        return None
    found: dict[str, Any] = json.loads(schema)
    return found


def _name(salt: bytes, index: int) -> str:
    return f"{salt.hex()}/{index}"


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[_CRC_BYTES:])


def _example_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if size is not None)


def _little_endian(spec: TensorSpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")
