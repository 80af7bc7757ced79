"""A refreshed feedback inside a message: a record of one array of bytes, sent in chunks.

A config record would do for small parts only: a device reads at most 1 MiB of those.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rootlet.errors import RecordError
from rootlet.fleet.records import ArrayRecord

FEEDBACK = "feedback"
"""The record's name in a `train` request."""

MAX_FEEDBACK_BYTES = 2**26
"""The most that a part may take in a message; a larger one travels by file."""

MAX_VERSION = 2**63 - 1
_PART = "part"


def to_record(part: bytes) -> ArrayRecord:
    """The record that carries a part; its bytes are not copied."""
    return ArrayRecord({_PART: np.frombuffer(part, np.uint8)})


def from_record(record: Mapping[str, Any]) -> bytes:
    """The part in a record, not verified yet; its size is checked before it is copied.

    Raises:
        RecordError: not one array of bytes, empty, or larger than a message may carry.
    """
    if set(record) != {_PART}:
        raise RecordError(f"{FEEDBACK}: holds {str(sorted(record))[:200]}; it holds {_PART!r} only")
    array = record[_PART]
    if getattr(array, "dtype", None) != np.uint8 or array.ndim != 1:
        raise RecordError(f"{FEEDBACK}: {_PART!r} must be one row of uint8")
    if not 1 <= array.nbytes <= MAX_FEEDBACK_BYTES:
        raise RecordError(
            f"{FEEDBACK} takes {array.nbytes} bytes; it must be 1 to {MAX_FEEDBACK_BYTES}"
        )
    part: bytes = array.tobytes()
    return part
