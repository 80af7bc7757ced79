"""The segments of one store, oldest first: appended to, read, and retired by unlinking them.

No file is ever rewritten. The newest segment is appended to until it has an eighth of the capacity,
or its first example has an eighth of the age that examples may have; a segment is retired when no
example in it may be kept.
"""

import contextlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rootlet.segment import Observed, Records, SegmentEnd, SegmentForm, SegmentWriter
from rootlet.store_head import FILE, StoreHead
from rootlet_runtime.durable import fsync_folder

SEGMENTS = 8
_PATTERNS = ("*.segment", "*.sealed", FILE, f".{FILE}.*.tmp")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be kept.

    Attributes:
        capacity: Most examples.
        segment_bytes: Most bytes of all segments; None for no limit.
        age_s: Greatest age of an example in seconds; None for no limit.
    """

    capacity: int
    segment_bytes: int | None = None
    age_s: float | None = None

    @property
    def per_segment(self) -> int:
        """Most examples of one segment."""
        return -(-self.capacity // SEGMENTS)

    def oldest_time(self, now: float) -> float:
        """When the oldest example that may be kept was observed."""
        return 0.0 if self.age_s is None else now - self.age_s


class SegmentLog:
    """The segments of a folder; one thread at a time.

    Args:
        folder: Where they lie.
        form: How they lie there.
        head: What is known of them.
        limits: What may be kept.
        now: Seconds since 1970.

    Attributes:
        next: Number of the next example.
        notes: What was found damaged and left out.

    Raises:
        StoreError: They are of other shapes, or not as they were written.
    """

    def __init__(
        self, folder: Path, form: SegmentForm, head: StoreHead, limits: Limits, now: float
    ) -> None:
        self.notes: list[str] = []
        self._folder, self._form, self._head, self._limits = folder, form, head, limits
        self._writer: SegmentWriter | None = None
        self._began = 0  # when the newest segment's first example was observed
        self._known = True  # the head knows the segments
        self.next, self._ends = head.restore()
        self._take_up_newest()
        self.expire(now)

    @property
    def count(self) -> int:
        """Examples on the disk."""
        return sum(end.count for end in self._ends.values())

    def append(self, examples: Sequence[Observed], now: float) -> int:
        """Writes the first of some examples, as many as one segment has room for.

        Returns:
            How many; they are durable.

        Raises:
            OSError: The disk refused; none was written.
        """
        self._commit()
        writer, end = self._newest(examples[0])
        written = examples[: self._limits.per_segment - end.count]
        raw, after = self._form.pack(end, written)
        writer.append(raw)
        if end.count == 0:
            self._began = written[0].time
        self._ends[end.first], self.next, self._known = after, written[-1].counter + 1, False
        try:
            self.expire(now)
        except OSError as error:  # the records are there: the head may follow later
            _log.warning("the head of %s cannot be written: %s", self._folder, error)
        return len(written)

    def expire(self, now: float) -> None:
        """Retires what may not be kept, and makes the head know it.

        Raises:
            OSError: The disk refused.
        """
        newest = next(reversed(self._ends.values()), None)
        if newest is not None and newest.count and self._may_not_be_kept(newest, now):
            self._begin(self.next)
        retired = self._retired(now)
        for end in retired:
            del self._ends[end.first]
        self._known = self._known and not retired
        self._commit()
        if retired:
            fsync_folder(self._folder)
        for end in retired:
            try:
                self._path(end).unlink()
            except OSError as error:  # it is found again when the store is opened
                _log.warning("%s cannot be removed: %s", self._path(end), error)

    def read(self) -> list[Records]:
        """The records of each segment.

        Raises:
            StoreError: They are not as they were written.
        """
        found = [np.zeros(0, self._form.dtype)]
        for first, end in self._ends.items():
            path = self._path(end)
            records = self._form.read(path, end)
            if len(records) < end.count:
                self._note(f"{path.name}: {end.count - len(records)} damaged examples dropped")
                self._ends[first] = replace(end, count=len(records))
            found.append(records)
        return found

    def erase(self) -> None:
        """Makes everything unreadable, then unlinks it; numbering starts anew."""
        self.close()
        self._head.destroy()
        for pattern in _PATTERNS:
            for path in self._folder.glob(pattern):
                path.unlink()
        fsync_folder(self._folder)
        self._ends, self.next, self._known = {}, 0, False
        self._commit()

    def close(self) -> None:
        """Closes the file that is written to."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _commit(self) -> None:
        if not self._known:
            self._head.commit(self.next, self._ends)
            self._known = True

    def _newest(self, example: Observed) -> tuple[SegmentWriter, SegmentEnd]:
        """What the example is to be appended to."""
        writer = self._writer
        if writer is None or self._is_full(self._ends[int(writer.path.stem)], example):
            writer = self._begin(example.counter)
        return writer, self._ends[int(writer.path.stem)]

    def _is_full(self, end: SegmentEnd, example: Observed) -> bool:
        age_s = self._limits.age_s
        old = age_s is not None and example.time - self._began > age_s / SEGMENTS
        return end.count >= self._limits.per_segment or (end.count > 0 and old)

    def _begin(self, first: int) -> SegmentWriter:
        self.close()
        end = self._form.begin(first)
        try:
            self._writer = SegmentWriter(self._path(end), end.header, 0)
        except OSError:
            with contextlib.suppress(OSError):
                self._path(end).unlink(missing_ok=True)
            raise
        self._ends[first], self._known = end, False
        return self._writer

    def _take_up_newest(self) -> None:
        """Cuts what a crash tore off the newest segment, and goes on writing there."""
        paths = sorted(self._folder.glob("*" + self._form.suffix))
        if not paths:
            return
        path, first = paths[-1], int(paths[-1].stem)
        records, end, size = self._form.recover(path, self._ends.get(first))
        if (torn := path.stat().st_size - size) > 0:
            self._note(f"{path.name}: cut {torn} torn bytes off its end")
        self._writer = SegmentWriter(path, end.header, size)
        self._known = self._ends.get(first) == end
        self._ends[first] = end
        self._began = int(records["time"][0]) if len(records) else 0
        self.next = max(self.next, int(records["counter"][-1]) + 1 if len(records) else first)

    def _retired(self, now: float) -> list[SegmentEnd]:
        """The oldest segments that may not be kept; never the newest one."""
        most, oldest = self._limits.segment_bytes, self.next - self._limits.capacity
        retired, ends = [], list(self._ends.values())
        size = sum(map(self._bytes, ends))
        for end, following in itertools.pairwise(ends):
            too_large = most is not None and size > most
            too_old = end.newest < self._limits.oldest_time(now)
            if not (following.first <= oldest or too_large or too_old):
                break
            retired.append(end)
            size -= self._bytes(end)
        return retired

    def _may_not_be_kept(self, end: SegmentEnd, now: float) -> bool:
        """Whether nothing of a segment may be kept, or it is larger than all of them may be."""
        most = self._limits.segment_bytes
        too_large = most is not None and self._bytes(end) > most
        return too_large or end.newest < self._limits.oldest_time(now)

    def _bytes(self, end: SegmentEnd) -> int:
        return len(end.header) + end.count * self._form.record_bytes

    def _path(self, end: SegmentEnd) -> Path:
        return self._folder / f"{end.first:020d}{self._form.suffix}"

    def _note(self, note: str) -> None:
        _log.warning("example store %s: %s", self._folder, note)
        self.notes.append(note)
