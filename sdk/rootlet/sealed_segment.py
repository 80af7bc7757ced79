"""One file of observed examples, encrypted: as `rootlet.segment`, sealed record by record.

```
"rootlet sealed segment 1" LF | key id (8) | salt (32, random) | header of a plain segment
(nonce (12, random) | AES-256-GCM(record without its CRC) | tag (16)) *
```

Each segment has a key of its own, by HKDF from the secret and the salt. A record's associated data
is SHA-256(the number that names the file | the header), its place in the file, and the tag of the
record before it. So a record that was changed, moved within the file, or taken from another file or
another time is refused, and the tag of the last one stands for all before it: the store's head
(`rootlet.store_head`) keeps it, so that a file that was cut short is refused as well.

Nonces are random because a place may be written twice: an end that a crash tore is cut off.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rootlet.errors import StoreError
from rootlet.secret_keys import KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES
from rootlet.segment import Observed, RecordFormat, Records, SegmentEnd
from rootlet.vault import Vault

MAGIC = b"rootlet sealed segment 1\n"
_SALT_BYTES = 32
_CRC_BYTES = 4
_SALT = len(MAGIC) + KEY_ID_BYTES
_PLAIN_HEADER = _SALT + _SALT_BYTES


class SealedSegments:
    """A `SegmentForm` with encryption: what cannot be trusted raises.

    Args:
        record: What a record is.
        vault: Has the key.

    Attributes:
        header_bytes: Of a file.
    """

    suffix = ".sealed"

    def __init__(self, record: RecordFormat, vault: Vault) -> None:
        self._record, self._vault = record, vault
        self.dtype = record.dtype
        self._content_bytes = record.dtype.itemsize - _CRC_BYTES
        self.record_bytes = NONCE_BYTES + self._content_bytes + TAG_BYTES
        self.header_bytes = _PLAIN_HEADER + len(record.header)

    def begin(self, first: int) -> SegmentEnd:
        """A new segment, with a new salt."""
        key_id, salt = self._vault.id_of("examples"), os.urandom(_SALT_BYTES)
        return SegmentEnd(first=first, header=MAGIC + key_id + salt + self._record.header)

    def header(self, path: Path) -> bytes:
        """The header of a file.

        Raises:
            StoreError: It is of another key or another bundle.
        """
        with path.open("rb") as file:
            found = file.read(self.header_bytes)
        if found[:_SALT] != MAGIC + self._vault.id_of("examples"):
            raise StoreError(
                f"{path} is not sealed with the key of this state: restore the right one, or move "
                "the file away"
            )
        if found[_PLAIN_HEADER:] != self._record.header:
            raise self._record.of_another_shape(path)
        return found

    def pack(self, end: SegmentEnd, examples: Sequence[Observed]) -> tuple[bytes, SegmentEnd]:
        """The records of examples that follow ``end``, and where the segment then ends."""
        aead, bound, tag = self._aead(end), _bound(end), end.tag
        plain = memoryview(self._record.records(examples).tobytes())
        nonces = os.urandom(NONCE_BYTES * len(examples))
        parts: list[bytes] = []
        for n in range(len(examples)):
            nonce = nonces[NONCE_BYTES * n : NONCE_BYTES * (n + 1)]
            start = self.dtype.itemsize * n
            content = plain[start + _CRC_BYTES : start + self.dtype.itemsize]
            sealed = aead.encrypt(nonce, content, _place(bound, end.count + n, tag))
            tag = sealed[-TAG_BYTES:]
            parts += (nonce, sealed)
        count = end.count + len(examples)
        return b"".join(parts), replace(end, count=count, tag=tag, newest=examples[-1].time)

    def read(self, path: Path, end: SegmentEnd) -> Records:
        """The records of a segment up to ``end``.

        Raises:
            StoreError: One of them is missing, or is not what was written at its place.
        """
        return self._known(path, end, path.read_bytes())

    def recover(self, path: Path, end: SegmentEnd | None) -> tuple[Records, SegmentEnd, int]:
        """The records up to ``end``, and those beyond it that a crash left whole."""
        raw = path.read_bytes()
        if end is None:
            end = self.begin(int(path.stem))
            header = raw[: self.header_bytes]
            if header[:_SALT] + header[_PLAIN_HEADER:] != end.header[:_SALT] + self._record.header:
                return np.zeros(0, self.dtype), end, 0  # torn: none of it was durable
            end = replace(end, header=header)
        known = self._known(path, end, raw)
        whole = (len(raw) - self.header_bytes) // self.record_bytes
        beyond, tag = self._opened(raw, end, whole - end.count)
        records = np.concatenate([known, beyond])
        if len(beyond):
            end = replace(end, count=len(records), tag=tag, newest=int(beyond["time"][-1]))
        return records, end, self.header_bytes + self.record_bytes * end.count

    def _known(self, path: Path, end: SegmentEnd, raw: bytes) -> Records:
        """The records up to ``end``, all of them."""
        if not raw.startswith(end.header):
            raise _not_as_written(path, "it is another file than the one that was written")
        records, tag = self._opened(raw, replace(end, count=0, tag=b""), end.count)
        if len(records) < end.count:
            raise _not_as_written(path, f"record {len(records)} was changed, moved or cut off")
        if tag != end.tag:
            raise _not_as_written(path, "its records are not the newest ones")
        return records

    def _opened(self, raw: bytes, after: SegmentEnd, most: int) -> tuple[Records, bytes]:
        """The records that follow, up to one that cannot be opened, and the last one's tag."""
        aead, bound, tag = self._aead(after), _bound(after), after.tag
        content = bytearray(self.dtype.itemsize * most)
        for n in range(most):
            start = self.header_bytes + self.record_bytes * (after.count + n)
            nonce = raw[start : start + NONCE_BYTES]
            sealed = raw[start + NONCE_BYTES : start + self.record_bytes]
            try:
                opened = aead.decrypt(nonce, sealed, _place(bound, after.count + n, tag))
            except (InvalidTag, ValueError):  # ValueError: the file ends within the nonce
                return np.frombuffer(content, self.dtype, n), tag
            tag = sealed[-TAG_BYTES:]
            first = self.dtype.itemsize * n + _CRC_BYTES
            content[first : first + self._content_bytes] = opened
        return np.frombuffer(content, self.dtype, most), tag

    def _aead(self, end: SegmentEnd) -> AESGCM:
        return self._vault.aead("examples", "segment", end.header[_SALT:_PLAIN_HEADER])


def _bound(end: SegmentEnd) -> bytes:
    return hashlib.sha256(end.first.to_bytes(8, "little") + end.header).digest()


def _place(bound: bytes, n: int, tag: bytes) -> bytes:
    return bound + n.to_bytes(8, "little") + tag


def _not_as_written(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} is not as it was written: {reason}. Keep the files as evidence, and erase() the "
        "examples to begin anew"
    )
