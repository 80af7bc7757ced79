r"""A ledger: lines that are only ever added, each bound to all before it by a hash.

``ledger.jsonl`` has one JSON object a line, readable as it is. With H = SHA-256, and canonical JSON
(sorted keys, no spaces, UTF-8) of an entry's other fields,

    hash_n = H(hash_{n-1} || "\n" || canonical(entry_n)),      hash_0 = 64 zeros

in lower-case hexadecimal. ``ledger.head`` holds the number and the hash of the last line. A line is
fsynced before its head, and both before ``append`` returns: what follows an entry (a reply that
leaves) never precedes it, and a crash leaves at most one line that the head does not know.

A changed, removed, reordered or inserted line breaks the chain; lines cut off at the end are missed
by the head. Who can rewrite both files can forge both: against that helps only a head that is kept
elsewhere, exported (``verify(known=...)``) or in an anchor, which is written after the head.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rootlet.anchor import Anchor
from rootlet.errors import LedgerError
from rootlet_runtime.durable import fsync_folder, write_atomically

GENESIS = "0" * 64
FILE, HEAD = "ledger.jsonl", "ledger.head"
_RESERVED = frozenset({"number", "time", "kind", "previous", "hash"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line.

    Attributes:
        number: From 1, without gaps.
        time: UTC, ISO 8601; the device's clock.
        kind: What happened.
        fields: The rest.
        previous: The hash before it.
        hash: Its own.
    """

    number: int
    time: str
    kind: str
    fields: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True)
class Head:
    """Where a ledger ends: the number and the hash of its last entry."""

    number: int = 0
    hash: str = GENESIS


class Ledger:
    """Appends to the ledger of a folder; one process at a time, any thread.

    Opening it verifies the whole chain. A line that a crash left unfinished is taken out, and an
    entry ``repaired`` says so.

    Args:
        folder: Made if absent.
        anchor: Keeps the head outside the folder; None keeps it there alone.

    Raises:
        LedgerError: The chain is broken, older than the anchor, or the files cannot be used.
        KeystoreError: The anchor cannot be asked.
    """

    def __init__(self, folder: Path, anchor: Anchor | None = None) -> None:
        self._path, self._head_path = folder / FILE, folder / HEAD
        self._lock = threading.Lock()
        self._anchor = anchor
        with _disk(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._head = verify(folder, known=_anchored(anchor))
            torn = self._take_out_torn_line()
            self._write_head()
        if torn:
            self.append("repaired", bytes_of_an_unfinished_line=torn)

    @property
    def head(self) -> Head:
        """Number and hash of the last entry; keep it elsewhere to notice a forged ledger."""
        return self._head

    def append(self, kind: str, **fields: Any) -> Entry:
        """Add an entry; it is on the disk when this returns.

        Args:
            kind: What happened.
            fields: JSON values; never content of a message.

        Raises:
            LedgerError: The disk refused it; the ledger is as it was.
            ValueError: A field's name is one of the ledger's own.
        """
        if taken := _RESERVED & fields.keys():
            raise ValueError(f"fields {sorted(taken)} are the ledger's own: give others")
        with self._lock:
            time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            body = {"number": self._head.number + 1, "time": time, "kind": kind, **fields}
            body["previous"] = self._head.hash
            digest = _hash(body)
            line = json.dumps({**body, "hash": digest}, ensure_ascii=False, allow_nan=False) + "\n"
            with _disk(self._path.parent):
                self._write_line(line.encode())
                self._head = Head(self._head.number + 1, digest)
                self._write_head()
        return _entry({**body, "hash": digest})

    def _write_line(self, line: bytes) -> None:
        made = not self._path.exists()
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            try:
                written = os.write(file, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes were written")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
        if made:
            fsync_folder(self._path.parent)

    def _write_head(self) -> None:
        content = json.dumps({"number": self._head.number, "hash": self._head.hash})
        write_atomically(self._head_path, content.encode())
        if self._anchor is not None:
            self._anchor.keep(f"{self._head.number} {self._head.hash}")

    def _take_out_torn_line(self) -> int:
        """Cut what follows the last line's end; returns how many bytes."""
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self._path, whole)
        return len(content) - whole


def read(folder: Path) -> list[Entry]:
    """The entries of a ledger, unverified; a last line without its end is none yet.

    Raises:
        LedgerError: A line is not an entry.
    """
    path = folder / FILE
    with _disk(folder):
        content = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = content.split("\n")[:-1]
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


def verify(folder: Path, *, known: Head | None = None) -> Head:
    """Hold every line of a ledger to the chain, and its end to the head.

    Args:
        folder: Of the ledger; one without files is an empty ledger.
        known: A head that was exported before; the ledger must contain that entry.

    Returns:
        Where it ends.

    Raises:
        LedgerError: What is wrong, and in which line.
    """
    path, head = folder / FILE, Head()
    stored, met = _stored_head(folder), {0: GENESIS}
    for place, entry in enumerate(read(folder), start=1):
        body = {"number": entry.number, "time": entry.time, "kind": entry.kind, **entry.fields}
        body["previous"] = entry.previous
        if entry.number != place or entry.previous != head.hash:
            raise LedgerError(
                f"{path}, line {place}: number {entry.number} after {head.number} does not follow; "
                "a line was removed, inserted or moved. Keep the file as evidence"
            )
        if _hash(body) != entry.hash:
            raise LedgerError(
                f"{path}, line {place}: its hash is not that of its content; it was changed. Keep "
                "the file as evidence"
            )
        head = Head(place, entry.hash)
        met[place] = entry.hash
    if stored is None and head.number > 1:
        raise LedgerError(
            f"{folder / HEAD} is missing and {path} has {head.number} lines: the end cannot be "
            "checked. Keep the file as evidence"
        )
    expected = stored or Head()
    if head.number not in (expected.number, expected.number + 1):  # a crash may come between
        raise LedgerError(
            f"{path} ends with line {head.number}, and {HEAD} says {expected.number}: lines were "
            "cut off or added. Keep the file as evidence"
        )
    for name, each in ((HEAD, expected), ("the known head", known or Head())):
        if met.get(each.number) != each.hash:
            raise LedgerError(
                f"{path}: line {each.number} is not the one that {name} names. The ledger was "
                "replaced; keep the file as evidence"
            )
    return head


def _anchored(anchor: Anchor | None) -> Head | None:
    number, _, digest = ((anchor and anchor.read()) or "").partition(" ")
    return Head(int(number), digest) if number.isdecimal() else None


def _stored_head(folder: Path) -> Head | None:
    path = folder / HEAD
    with _disk(folder):
        content = path.read_bytes() if path.exists() else None
    if content is None:
        return None
    try:
        found = json.loads(content)
        return Head(int(found["number"]), str(found["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{path} is damaged ({error}): keep it, and the ledger, as evidence"
        ) from error


def _parsed(path: Path, number: int, line: str) -> Entry:
    try:
        return _entry(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"{path}, line {number} is not an entry ({type(error).__name__}); it was changed. Keep "
            "the file as evidence"
        ) from error


def _entry(found: dict[str, Any]) -> Entry:
    return Entry(
        number=found["number"],
        time=found["time"],
        kind=found["kind"],
        fields={name: value for name, value in found.items() if name not in _RESERVED},
        previous=found["previous"],
        hash=found["hash"],
    )


def _hash(body: Mapping[str, Any]) -> str:
    fields = {name: value for name, value in body.items() if name != "previous"}
    canonical = json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(f"{body['previous']}\n{canonical}".encode()).hexdigest()


@contextlib.contextmanager
def _disk(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"the ledger in {folder} cannot be used ({error.strerror or error}): make room, or "
            "give a folder that this user may write to"
        ) from error
