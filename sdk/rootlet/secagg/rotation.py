"""A random rotation that spreads an update evenly, so that rounding and saturating cost little.

Two signed Walsh-Hadamard transforms of the largest power of two p <= d, over the first p and the
last p of the d values; p > d / 2, so every value is in one of them. Orthogonal, in d dimensions
exactly, and undone by its transpose. The signs are public: they come from the round's plan.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from rootlet.secagg.keys import DOMAIN
from rootlet.secagg.masks import keystream

Vector = npt.NDArray[np.float64]


def rotate(values: npt.NDArray[np.floating], context: bytes) -> Vector:
    """The rotated vector, float64 [d]."""
    rotated, size = values.astype(np.float64), _size(len(values))
    for start, signs in zip((0, len(values) - size), _signs(context, size), strict=True):
        part = rotated[start : start + size]
        part *= signs
        _hadamard(part)
    return rotated


def rotate_back(values: npt.NDArray[np.floating], context: bytes) -> Vector:
    """What `rotate` made of it, undone."""
    rotated, size = values.astype(np.float64), _size(len(values))
    first, last = _signs(context, size)
    for start, signs in ((len(values) - size, last), (0, first)):
        part = rotated[start : start + size]
        _hadamard(part)
        part *= signs
    return rotated


def _size(values: int) -> int:
    return 1 << (values.bit_length() - 1)


def _signs(context: bytes, size: int) -> tuple[Vector, Vector]:
    key = hashlib.sha256(DOMAIN + b"rotation" + context).digest()
    count = -(-size // 8)
    stream = np.frombuffer(keystream(key, 2 * count), np.uint8)
    bits = np.unpackbits(stream.reshape(2, count), axis=1)[:, :size]
    first, last = 1.0 - 2.0 * bits
    return first, last


def _hadamard(values: Vector) -> None:
    """The orthonormal transform, in place; log2(p) passes."""
    size = len(values)
    half = 1
    while half < size:
        pairs = values.reshape(-1, 2, half)
        low, high = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        pairs[:, 0], pairs[:, 1] = low, high
        half *= 2
    values /= np.sqrt(size)
