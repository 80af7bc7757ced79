"""The examples that an app observed, kept on the device for training.

A ring of the newest ``capacity`` examples, in append-only segments (`rootlet.segment`). A ring
rather than a reservoir: a device learns what its user does now, and old examples are gone within
a bounded time. The oldest segment is retired by unlinking it, so no file is ever rewritten.

Guarantees:

* ``observe`` copies the example and returns; it never touches the disk.
* An example is on its way to the disk within ``sync_interval_s``, and durable when ``flush``
  returns.
* After a crash or power cut the store opens with every durable example; a torn end is cut off.
* Of every ``holdout_every`` consecutive examples exactly one is held out, at a place drawn by a
  hash of its number; an example never moves between the two parts.
* The disk holds at most ``capacity`` examples and one segment (an eighth of it) more.
* With a cipher (`rootlet.vault`) a record that was changed, moved or replaced is left out and
  noted; so is it noted where the end was cut off, by an authenticated head that follows each write.
  A crash between the two is neither.
"""

import hashlib
import itertools
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np

from rootlet.errors import ConfigError, StoreError
from rootlet.segment import SALT_BYTES, RecordFormat, Records, SegmentWriter
from rootlet.store_head import StoreCipher, StoreHead
from rootlet_runtime.durable import fsync_folder
from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import TensorSpec

_SEGMENTS = 8
_SUFFIX = ".segment"
_log = logging.getLogger(__name__)

Examples = tuple[np.ndarray, np.ndarray]


class ExampleStore:
    """A durable, bounded store of examples; a data source for `rootlet.participant`.

    Args:
        directory: Where the segments lie; made if absent.
        x_spec: The bundle's input.
        y_spec: The bundle's target.
        capacity: Most examples kept.
        cipher: What every record passes through; None encrypts nothing.
        retention_days: An example that is older is gone; None for no such bound.
        holdout_every: One of this many examples is held out.
        sync_interval_s: Longest time in seconds that an example waits for the disk.

    Raises:
        ConfigError: A number is outside its bounds.
        StoreError: The directory holds examples of other shapes.
    """

    def __init__(
        self,
        directory: Path,
        x_spec: TensorSpec,
        y_spec: TensorSpec,
        *,
        capacity: int = 4096,
        cipher: StoreCipher | None = None,
        retention_days: float | None = None,
        holdout_every: int = 5,
        sync_interval_s: float = 1.0,
    ) -> None:
        _at_least("capacity", capacity, 1)
        _at_least("holdout_every", holdout_every, 2)
        self.directory = directory
        self.capacity = capacity
        self.holdout_every = holdout_every
        if retention_days is not None and not retention_days > 0:
            raise ConfigError(f"retention_days is {retention_days}: must be positive")
        self._retention_s = None if retention_days is None else retention_days * 86_400
        self._cipher = cipher
        self._format = RecordFormat(x_spec, y_spec, cipher)
        self._sync_interval_s = sync_interval_s
        self._disk = threading.Lock()  # taken before _changed, never by observe
        self._changed = threading.Condition()
        self._pending: deque[tuple[int, int, np.ndarray, np.ndarray]] = deque(maxlen=capacity)
        self._salt = b""
        self._writer: SegmentWriter | None = None
        self._thread: threading.Thread | None = None
        self._hurry = False
        self._closed = False
        self._attempts = self._failed = 0  # writes begun; the last of them that failed
        self._error: OSError | None = None
        self._notes: list[str] = []
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._counts = {path: self._count(path) for path in sorted(directory.glob("*" + _SUFFIX))}
        self._next = self._open_last()
        self._head = None if cipher is None else StoreHead(directory, cipher)
        if self._head is not None:
            for note in self._head.check(self._next):
                self._note(note)
            self._next = max(self._next, self._head.next)

    def __len__(self) -> int:
        """Examples held, on disk and waiting for it."""
        with self._changed:
            return min(self.capacity, sum(self._counts.values()) + len(self._pending))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found damaged and left out, in plain words."""
        return tuple(self._notes)

    def observe(self, x: np.ndarray, y: np.ndarray) -> None:
        """Takes one example; returns at once.

        Args:
            x: Input without its batch dimension.
            y: Target without its batch dimension.

        Raises:
            DataError: Shape or dtype is not the bundle's.
            StoreError: The store is closed.
        """
        x, y = self._checked("x", x), self._checked("y", y)
        with self._changed:
            if self._closed:
                raise StoreError(f"the example store {self.directory} is closed: open it again")
            self._pending.append((self._next, int(time.time()), x, y))
            self._next += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_until_closed, name="rootlet-store", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def train(self) -> Examples:
        """The examples to learn from, oldest first: ``(x [N, ...], y [N, ...])``."""
        return self._part(held_out=False)

    def holdout(self) -> Examples:
        """The examples kept from training, oldest first: ``(x [N, ...], y [N, ...])``."""
        return self._part(held_out=True)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Waits until everything observed so far is durable.

        Raises:
            StoreError: The disk refused, or was not done in ``timeout_s`` seconds.
        """
        with self._changed:
            target, since = self._next, self._attempts
            self._hurry = bool(self._pending)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._oldest_pending() >= target or self._failed > since, timeout_s
            )
            if self._oldest_pending() >= target:
                return
            reason = self._error if self._failed > since else f"not done after {timeout_s} s"
            raise StoreError(
                f"{len(self._pending)} examples could not be written to {self.directory}: "
                f"{reason}: free some space, check the disk, or wait longer"
            ) from self._error

    def erase(self) -> None:
        """Removes every example, on disk and waiting; numbering starts anew.

        With a cipher their key is destroyed first, so nothing readable is left, whatever a flash
        medium keeps of the unlinked files.
        """
        with self._disk, self._changed:
            self._pending.clear()
            self._close_writer()
            if self._cipher is not None:
                self._cipher.renew()
            for path in self.directory.glob("*" + _SUFFIX):
                path.unlink()
            fsync_folder(self.directory)
            self._counts.clear()
            self._next = 0
            if self._head is not None:
                self._head.keep(0)
            self._changed.notify_all()

    def close(self) -> None:
        """Writes what waits and stops; a second call does nothing.

        Raises:
            StoreError: Something could not be written.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._disk, self._changed:
            self._close_writer()
            if self._pending:
                raise StoreError(
                    f"{len(self._pending)} examples were lost on closing {self.directory}: "
                    f"{self._error}: free some space or check the disk"
                )

    def _checked(self, name: str, value: np.ndarray) -> np.ndarray:
        field = self._format.dtype[name]
        given = np.array(value)
        if given.dtype != field.base or given.shape != field.shape:
            raise DataError(
                f"{name} is {given.dtype} of shape {given.shape}; this bundle takes "
                f"{field.base} of shape {field.shape}: convert it before observing"
            )
        return given

    def _part(self, *, held_out: bool) -> Examples:
        with self._disk:
            stored = [self._read(path) for path in self._counts]
            with self._changed:
                waiting = self._format.pack(self._pending)
                oldest = self._next - self.capacity
        limit_s = 0 if self._retention_s is None else time.time() - self._retention_s
        chosen = [
            records[
                [
                    counter >= oldest
                    and time_s >= limit_s
                    and is_held_out(counter, self.holdout_every) is held_out
                    for counter, time_s in zip(
                        records["counter"].tolist(), records["time"].tolist(), strict=True
                    )
                ]
            ]
            for records in (*stored, waiting)
        ]
        records = np.concatenate(chosen)
        return np.ascontiguousarray(records["x"]), np.ascontiguousarray(records["y"])

    def _read(self, path: Path) -> Records:
        records, _ = self._format.read(path)
        if len(records) < self._counts[path]:
            self._note(f"{path.name}: {self._counts[path] - len(records)} damaged examples dropped")
            self._counts[path] = len(records)
        return records

    def _count(self, path: Path) -> int:
        size = path.stat().st_size - self._format.header_bytes
        return max(0, size) // self._format.record_bytes

    def _open_last(self) -> int:
        """Cuts a torn end off the newest segment; returns the number of the next example."""
        if not self._counts:
            return 0
        path = next(reversed(self._counts))
        records, size = self._format.read(path)
        if (torn := path.stat().st_size - size) > 0:
            self._note(f"{path.name}: cut {torn} torn bytes off its end")
        salt = self._format.salt(path)
        self._salt = os.urandom(SALT_BYTES) if salt is None else salt
        self._writer = SegmentWriter(path, self._format.header(self._salt), size)
        self._counts[path] = self._count(path)
        return int(records["counter"][-1]) + 1 if len(records) else int(path.stem)

    def _oldest_pending(self) -> int:
        return self._pending[0][0] if self._pending else self._next

    def _write_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                self._changed.wait_for(lambda: self._hurry or self._closed, self._sync_interval_s)
                self._hurry = False
                closing = self._closed
            self._write_pending()
            if closing:
                return

    def _write_pending(self) -> None:
        with self._disk:
            with self._changed:
                batch = list(self._pending)
                self._attempts += 1
            try:
                self._write(batch)
                self._error = None
            except OSError as error:
                _log.warning("examples cannot be written to %s: %s", self.directory, error)
                self._error, self._failed = error, self._attempts
            with self._changed:
                self._changed.notify_all()

    def _write(self, batch: list[tuple[int, int, np.ndarray, np.ndarray]]) -> None:
        per_segment = -(-self.capacity // _SEGMENTS)
        while batch:
            writer = self._writer
            if writer is None or self._counts[writer.path] >= per_segment:
                writer = self._begin_segment(batch[0][0])
            room = per_segment - self._counts[writer.path]
            written, batch = batch[:room], batch[room:]
            records = self._format.pack(written)
            writer.append(self._format.seal(records, self._salt, self._counts[writer.path]))
            last = written[-1][0]
            with self._changed:
                self._counts[writer.path] += len(written)
                while self._pending and self._pending[0][0] <= last:
                    self._pending.popleft()
            self._retire(last + 1 - self.capacity)
            if self._head is not None:
                self._head.keep(last + 1)

    def _begin_segment(self, first: int) -> SegmentWriter:
        self._close_writer()
        path = self.directory / f"{first:020d}{_SUFFIX}"
        self._salt = os.urandom(SALT_BYTES)
        self._writer = SegmentWriter(path, self._format.header(self._salt), 0)
        with self._changed:
            self._counts[path] = 0
        return self._writer

    def _retire(self, oldest: int) -> None:
        """Unlinks the segments that end before the example numbered ``oldest``, or are too old."""
        for path, following in itertools.pairwise(list(self._counts)):
            if int(following.stem) > oldest and not self._expired(path):
                return
            path.unlink()
            with self._changed:
                del self._counts[path]

    def _expired(self, path: Path) -> bool:
        """Whether all of a segment that is written no more is beyond its time."""
        if self._retention_s is None:
            return False
        return path.stat().st_mtime < time.time() - self._retention_s

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _note(self, note: str) -> None:
        _log.warning("example store %s: %s", self.directory, note)
        self._notes.append(note)


def is_held_out(counter: int, every: int) -> bool:
    """Whether example ``counter`` is held out: one place in each block of ``every``, by a hash."""
    block, place = divmod(counter, every)
    digest = hashlib.blake2b(block.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % every == place


def _at_least(name: str, value: int, bound: int) -> None:
    if value < bound:
        raise ConfigError(f"{name} is {value}, below {bound}: give at least {bound}")
