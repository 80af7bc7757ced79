"""Shamir's secret sharing (1979) over the prime field of p = 2^256 + 297.

A secret s of 32 bytes is the constant term of a random polynomial of degree t - 1; a share is its
value at a point x >= 1. Any t shares give s back, fewer tell nothing:

    f(x) = s + c_1 x + ... + c_{t-1} x^{t-1}  mod p
    s    = sum_i f(x_i) prod_{j != i} x_j / (x_j - x_i)  mod p
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33

Coefficient = Callable[[], int]


def _random_coefficient() -> int:
    return secrets.randbelow(PRIME)


def split(
    secret: bytes,
    points: Sequence[int],
    threshold: int,
    coefficient: Coefficient = _random_coefficient,
) -> list[bytes]:
    """The shares of a secret at ``points``.

    Args:
        secret: 32 bytes.
        points: Distinct, from 1.
        threshold: t, how many shares give the secret back.
        coefficient: Draws a number below p; replaced in tests with known answers only.

    Returns:
        33 bytes a point, big-endian.

    Raises:
        ValueError: Sizes that do not fit together.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes; it must have {SECRET_BYTES}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} of {len(points)} shares; at least 1, at most all")
    if len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("points must be distinct and at least 1")
    polynomial = [coefficient() for _ in range(threshold - 1)]
    polynomial.reverse()
    polynomial.append(int.from_bytes(secret, "big"))
    shares = []
    for x in points:
        value = 0
        for c in polynomial:
            value = (value * x + c) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret from its shares by point; the caller gives t of them.

    Raises:
        ValueError: The shares are not of one polynomial of such a secret.
    """
    points = list(shares)
    product = math.prod(points)  # of small numbers: exact, and reduced once
    quotients = [x * math.prod([y - x for y in points if y != x]) % PRIME for x in points]
    secret = 0
    for x, inverse in zip(points, _inverses(quotients), strict=True):
        secret += int.from_bytes(shares[x], "big") * inverse
    secret = secret * product % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares give no secret of 32 bytes: one of them is wrong")
    return secret.to_bytes(SECRET_BYTES, "big")


def _inverses(values: Sequence[int]) -> list[int]:
    """All inverses mod p by one inversion (Montgomery's trick)."""
    running, before = 1, []
    for value in values:
        before.append(running)
        running = running * value % PRIME
    inverse, found = pow(running, -1, PRIME), []
    for value, product in zip(reversed(values), reversed(before), strict=True):
        found.append(inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return found[::-1]
