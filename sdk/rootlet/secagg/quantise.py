"""Updates as whole numbers: stochastic rounding that saturates, and noise that is exact.

    q = floor(v s + u),   u uniform in [0, 1),   |q| <= 2^(bits - 1) - 1

with s units in 1.0. Its mean is v s where v does not saturate, and its error is below one unit.
u comes from 16 bits of a keystream whose key is drawn for the purpose and thrown away.
"""

import os

import numpy as np
import numpy.typing as npt

from rootlet.secagg.masks import keystream

Values = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int32]

_UNIFORM_BITS = 16


def largest_value(bits: int) -> int:
    """The largest size of a value of so many bits: 2^(bits - 1) - 1."""
    return int(2 ** (bits - 1) - 1)


def quantise(values: Values, units: float, bits: int, key: bytes | None = None) -> Whole:
    """Round to whole numbers at random, with the right mean; NaN becomes 0.

    Args:
        values: [d], float32.
        units: s, units in 1.0.
        bits: Of a value.
        key: Draws u; fresh from the operating system by default.
    """
    largest = largest_value(bits)
    bound = np.float32(largest / units)
    scaled = np.nan_to_num(np.clip(values, -bound, bound), copy=False)
    scaled *= np.float32(units)
    words = np.frombuffer(keystream(key or os.urandom(32), 2 * values.size), np.uint16)
    scaled += words * np.float32(2.0**-_UNIFORM_BITS)
    np.floor(scaled, out=scaled)
    whole: Whole = scaled.astype(np.int32)
    return np.clip(whole, -largest, largest, out=whole)


def signed(total: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.int64]:
    """A sum modulo 2^16 or 2^32 as the signed number that it stands for, int64."""
    kind = np.int16 if total.dtype == np.uint16 else np.int32
    found: npt.NDArray[np.int64] = total.view(kind).astype(np.int64)
    return found
