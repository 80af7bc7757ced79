"""How a store's examples are kept: in which form, and how many of them within a quota."""

from pathlib import Path

from rootlet.errors import ConfigError
from rootlet.migration import seal_examples
from rootlet.sealed_segment import SealedSegments
from rootlet.segment import PlainSegments, RecordFormat
from rootlet.segment_log import SEGMENTS, Limits, SegmentLog
from rootlet.store_head import MAX_BYTES, FoldersHead, SealedHead
from rootlet.vault import Vault

_DAY_S = 86400.0
_MOST_SEGMENTS = 2 * SEGMENTS + 4  # by number and by age at once, one begun and one not yet retired


class Kept:
    """The files of a store.

    Args:
        directory: Where they lie.
        record: What a record is.
        vault: Encrypts; None keeps examples as they are.
    """

    def __init__(self, directory: Path, record: RecordFormat, vault: Vault | None) -> None:
        self._directory, self._record, self._vault = directory, record, vault
        self._plain = PlainSegments(record)
        self._sealed = None if vault is None else SealedSegments(record, vault)

    def opened(self, limits: Limits, now: float) -> SegmentLog:
        """The segments, with what was kept before there was a vault.

        Raises:
            StoreError: They are of other shapes, or not as they were written.
            OSError: The disk refuses.
        """
        folder = self._directory
        if self._vault is None or self._sealed is None:
            return SegmentLog(folder, self._plain, FoldersHead(folder, self._plain), limits, now)
        head = SealedHead(folder, self._sealed, self._vault)
        log = SegmentLog(folder, self._sealed, head, limits, now)
        seal_examples(folder, self._plain, log, self._vault, now)
        return log

    def limits(
        self, capacity: int, quota_bytes: int | None, retention_days: float | None
    ) -> Limits:
        """What may be kept, with no more examples than a quota holds at its fullest moment.

        Before a segment is retired there are ``capacity`` examples and those of two segments; a
        head lies beside the one that replaces it.

        Raises:
            ConfigError: A number is outside its bounds.
        """
        if retention_days is not None and not retention_days > 0:
            raise ConfigError(f"retention_days is {retention_days}: give more than 0, or None")
        age_s = None if retention_days is None else retention_days * _DAY_S
        if quota_bytes is None:
            return Limits(capacity=capacity, age_s=age_s)
        form = self._sealed or self._plain
        segment_bytes = quota_bytes - 2 * MAX_BYTES
        headers = _MOST_SEGMENTS * len(form.begin(0).header)
        most = max(0, (segment_bytes - headers) // form.record_bytes)
        fits = most * SEGMENTS // (SEGMENTS + 2)
        while fits > 0 and fits + 2 * Limits(capacity=fits).per_segment > most:
            fits -= 1
        if fits < 1:
            needed = 2 * MAX_BYTES + headers + 3 * form.record_bytes
            raise ConfigError(
                f"quota_bytes is {quota_bytes}, which holds no example of "
                f"{self._record.dtype.itemsize} bytes: give at least {needed}"
            )
        capacity = min(capacity, fits)
        return Limits(capacity=capacity, segment_bytes=segment_bytes, age_s=age_s)
