"""The examples that an app observed, kept on the device for training.

A ring of the newest ``capacity`` examples, in append-only segments (`rootlet.segment_log`). A ring
rather than a reservoir: a device learns what its user does now, and old examples are gone within
a bounded time. The oldest segment is retired by unlinking it, so no file is ever rewritten.

Guarantees:

* ``observe`` copies the example and returns; it never touches the disk.
* An example is on its way to the disk within ``sync_interval_s``, and durable when ``flush``
  returns.
* After a crash or power cut the store opens with every durable example; a torn end is cut off.
* Of every ``holdout_every`` consecutive examples exactly one is held out, at a place drawn by a
  hash of its number; an example never moves between the two parts.
* The disk holds at most ``capacity`` examples and one segment (an eighth of it) more; all files
  together never more than ``quota_bytes``.
* An example older than ``retention_days`` is never given back; while the store is open it is off
  the disk when it is older by an eighth and an hour, else at the next opening. Age is by the
  device's clock.

With a vault everything on the disk is encrypted and authenticated (`rootlet.sealed_segment`), and
files that are not as they were written raise instead of giving examples. Without one, a damaged
example is left out and noted, and the directory is readable by its owner only.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rootlet.errors import ConfigError, StoreError
from rootlet.kept_examples import Kept
from rootlet.segment import Observed, RecordFormat
from rootlet.segment_log import SEGMENTS
from rootlet.vault import Vault
from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import TensorSpec

_EXPIRY_S = 3600.0
_log = logging.getLogger(__name__)

Examples = tuple[np.ndarray, np.ndarray]


class ExampleStore:
    """A durable, bounded store of examples; a data source for `rootlet.participant`.

    Args:
        directory: Where the segments lie; made if absent.
        x_spec: The bundle's input.
        y_spec: The bundle's target.
        capacity: Most examples kept.
        holdout_every: One of this many examples is held out.
        sync_interval_s: Longest time in seconds that an example waits for the disk.
        retention_days: Greatest age of an example; None for no limit.
        quota_bytes: Most bytes of all files; lowers ``capacity`` to what fits. None for no limit.
        vault: Encrypts, and takes over what was kept without; None keeps the examples as they are.
        clock: Seconds since 1970.

    Raises:
        ConfigError: A number is outside its bounds.
        StoreError: The directory holds examples of other shapes, its files are not as they were
            written, or the disk refuses.
    """

    def __init__(
        self,
        directory: Path,
        x_spec: TensorSpec,
        y_spec: TensorSpec,
        *,
        capacity: int = 4096,
        holdout_every: int = 5,
        sync_interval_s: float = 1.0,
        retention_days: float | None = None,
        quota_bytes: int | None = None,
        vault: Vault | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _at_least("capacity", capacity, 1)
        _at_least("holdout_every", holdout_every, 2)
        self.directory = directory
        self.holdout_every = holdout_every
        self._clock = clock
        self._format = record = RecordFormat(x_spec, y_spec)
        kept = Kept(directory, record, vault)
        limits = kept.limits(capacity, quota_bytes, retention_days)
        self.capacity = limits.capacity
        self._limits = limits
        self._sync_interval_s = sync_interval_s
        self._disk = threading.Lock()  # taken before _changed, never by observe
        self._changed = threading.Condition()
        self._pending: deque[Observed] = deque(maxlen=limits.capacity)
        self._thread: threading.Thread | None = None
        self._hurry = False
        self._closed = False
        self._erasures = 0
        self._attempts = self._failed = 0  # writes begun; the last of them that failed
        self._error: OSError | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log = kept.opened(limits, clock())
        except OSError as error:
            raise StoreError(
                f"the example store {directory} cannot be opened ({error}): free some space, or "
                "give a directory that this user may write to"
            ) from error
        self._next, self._stored = self._log.next, self._log.count
        if limits.age_s is not None:
            self._start()

    def __len__(self) -> int:
        """Examples held, on disk and waiting for it."""
        with self._changed:
            return min(self.capacity, self._stored + len(self._pending))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found damaged and left out, in plain words."""
        return tuple(self._log.notes)

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
            self._pending.append(Observed(self._next, int(self._clock()), x, y))
            self._next += 1
            if self._thread is None:
                self._start()
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
            target, since, erasures = self._next, self._attempts, self._erasures
            self._hurry = bool(self._pending)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: (
                    self._oldest_pending() >= target
                    or self._failed > since
                    or self._erasures > erasures
                ),
                timeout_s,
            )
            if self._oldest_pending() >= target or self._erasures > erasures:
                return
            reason = self._error if self._failed > since else f"not done after {timeout_s} s"
            raise StoreError(
                f"{len(self._pending)} examples could not be written to {self.directory}: "
                f"{reason}: free some space, check the disk, or wait longer"
            ) from self._error

    def erase(self) -> None:
        """Removes every example, on disk and waiting; numbering starts anew.

        With a vault the key is destroyed first: what a medium keeps of the files, and every copy of
        them, is unreadable from then on. Without one the files are unlinked, not overwritten.

        Raises:
            KeystoreError: The key store refuses; nothing on the disk was erased.
        """
        with self._disk:
            with self._changed:
                self._pending.clear()
            self._log.erase()
            with self._changed:
                self._stored = 0
                self._erasures += 1
                if self._pending:  # observed meanwhile: it stays, under a new number
                    kept = [item._replace(counter=n) for n, item in enumerate(self._pending)]
                    self._pending = deque(kept, maxlen=self.capacity)
                self._next = len(self._pending)
                self._changed.notify_all()

    def expire(self) -> None:
        """Removes what ``retention_days`` no longer allows; done every hour at the latest.

        Raises:
            StoreError: The disk refuses.
        """
        with self._disk:
            try:
                self._log.expire(self._clock())
            except OSError as error:
                raise StoreError(f"{self.directory}: old examples stay ({error})") from error
            with self._changed:
                self._stored = self._log.count

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
            self._log.close()
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
            stored = self._log.read()
            with self._changed:
                self._stored = self._log.count
                waiting = self._format.records(self._pending)
                oldest = self._next - self.capacity
        since = self._limits.oldest_time(self._clock())
        chosen = [
            records[
                [
                    counter >= oldest
                    and observed >= since
                    and is_held_out(counter, self.holdout_every) is held_out
                    for counter, observed in zip(
                        records["counter"].tolist(), records["time"].tolist(), strict=True
                    )
                ]
            ]
            for records in (*stored, waiting)
        ]
        records = np.concatenate(chosen)
        return np.ascontiguousarray(records["x"]), np.ascontiguousarray(records["y"])

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self._write_until_closed, name="rootlet-store", daemon=True
        )
        self._thread.start()

    def _oldest_pending(self) -> int:
        return self._pending[0][0] if self._pending else self._next

    def _write_until_closed(self) -> None:
        age_s = self._limits.age_s
        pause_s = None if age_s is None else min(_EXPIRY_S, age_s / SEGMENTS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed, pause_s)
                if self._pending:
                    self._changed.wait_for(
                        lambda: self._hurry or self._closed, self._sync_interval_s
                    )
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

    def _write(self, batch: list[Observed]) -> None:
        self._log.expire(self._clock())
        while batch:
            written = self._log.append(batch, self._clock())
            last, batch = batch[written - 1].counter, batch[written:]
            with self._changed:
                self._stored = self._log.count
                while self._pending and self._pending[0].counter <= last:
                    self._pending.popleft()


def is_held_out(counter: int, every: int) -> bool:
    """Whether example ``counter`` is held out: one place in each block of ``every``, by a hash."""
    block, place = divmod(counter, every)
    digest = hashlib.blake2b(block.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % every == place


def _at_least(name: str, value: int, bound: int) -> None:
    if value < bound:
        raise ConfigError(f"{name} is {value}, below {bound}: give at least {bound}")
