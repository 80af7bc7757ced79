"""Arrays as `.npy` bytes: the form in which Flower moves them.

Reading is safe on hostile bytes: the header must be literally what numpy writes, the dtype comes
from a list, and the shape must account for every byte, so that nothing is allocated beyond the
bytes already received. Objects (pickle) never pass.
"""

import io
import math
import re

import numpy as np
from numpy.lib import format as npy_format

from rootlet.errors import ProtocolError, RecordError

ALLOWED_DTYPES = {
    np.dtype(name).str: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}
"""Dtypes that may travel, by their `.npy` description."""

MAX_DIMENSIONS = 32
MAX_HEADER_BYTES = 4096

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}
_HEADER = re.compile(
    r"\{'descr': '([^']{1,8})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}(?:, ?)?)*)\), \} *\n"
)


def to_npy(array: np.ndarray) -> bytes:
    """Return the `.npy` bytes of an array.

    Raises:
        RecordError: A dtype outside `ALLOWED_DTYPES`.
    """
    if array.dtype.str not in ALLOWED_DTYPES:
        raise RecordError(f"an array of dtype {array.dtype} cannot travel; use one of {_names()}")
    buffer = io.BytesIO()
    npy_format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def from_npy(content: bytearray) -> np.ndarray:
    """Return the array in `content`, as a writable view of it.

    Raises:
        ProtocolError: A malformed header, a dtype outside the list, or a shape that does not
            account for exactly the bytes that follow the header.
    """
    length_bytes = _LENGTH_BYTES.get(bytes(content[6:8]))
    if bytes(content[:6]) != _MAGIC or length_bytes is None:
        raise ProtocolError("an array that does not begin like a .npy file of version 1.0 or 2.0")
    start = 8 + length_bytes
    length = int.from_bytes(content[8:start], "little")
    if length > MAX_HEADER_BYTES:
        raise ProtocolError(f"a .npy header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
    header = bytes(content[start : start + length]).decode("latin-1")
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ProtocolError(f"a .npy header that numpy does not write: {header!r:.120}")
    dtype = ALLOWED_DTYPES.get(match[1])
    if dtype is None:
        raise ProtocolError(f"an array of dtype {match[1]!r}; allowed are {_names()}")
    shape = tuple(int(size) for size in match[3].replace(",", " ").split())
    body = memoryview(content)[start + length :]
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(body):
        raise ProtocolError(
            f"an array of shape {str(shape)[:80]} and dtype {dtype} with {len(body)} bytes of data"
        )
    flat = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if match[2] == "True" else "C")


def _names() -> str:
    return ", ".join(sorted(dtype.name for dtype in ALLOWED_DTYPES.values()))
