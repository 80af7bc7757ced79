"""Discrete Gaussian noise from the operating system's secure generator, exact on integers.

Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential Privacy" (2020):
``P[Y = y] ~ exp(-y^2 / (2 s^2))`` over the whole numbers. By default ``s = 2^32``: what is released
is rounded to a grid of 2^-32 of the noise's standard deviation, so one sampler serves every scale.
Devices whose whole numbers are added modulo 2^16 or 2^32 take a smaller power of two. Added to
whole numbers that an example changes by d in Euclidean length, it gives the Renyi divergences of
the continuous Gaussian, ``alpha d^2 / (2 s^2)``.

Floating-point noise would leak through the gaps between floats (Mironov 2012). Here the draws are
exact although their arithmetic is float64: whether a uniform u lies below ``exp(-g)`` is decided in
float64 only where they are further apart than every rounding error (``MARGIN``). The others, about
one in 10^12, are decided with as many more digits of both as it takes.
"""

import decimal
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

RandomBytes = Callable[[int], bytes]
Integers = npt.NDArray[np.int64]

SCALE_BITS = 32
SCALE: int = 2**SCALE_BITS
# u is known to 2^-53, g to 2^-53 of itself and exp to a few units in the last place.
MARGIN = 2.0**-40
_UNIFORM_BITS = 53
_MORE_BITS = 64


def discrete_gaussian(
    count: int, random_bytes: RandomBytes = os.urandom, *, scale_bits: int = SCALE_BITS
) -> Integers:
    """``count`` independent draws with the parameter ``2^scale_bits``, int64.

    Args:
        count: How many.
        random_bytes: The generator.
        scale_bits: 0 to 32.
    """
    draws: list[Integers] = []
    missing = count
    while missing > 0:
        proposals = _discrete_laplace(missing + missing // 2 + 16, random_bytes, scale_bits)
        distance = np.abs(proposals) - 2**scale_bits
        accepted = proposals[_below_exp(distance, 2, random_bytes, scale_bits)]
        draws.append(accepted[:missing])
        missing -= len(draws[-1])
    return np.concatenate(draws) if draws else np.empty(0, np.int64)


def _discrete_laplace(count: int, random_bytes: RandomBytes, scale_bits: int) -> Integers:
    """Up to ``count`` draws with ``P[y] ~ exp(-|y| / s)`` (their algorithm 2)."""
    scale = 2**scale_bits
    words = _words(count, random_bytes) & np.uint64(scale - 1)
    low: Integers = words.astype(np.int64)
    low = low[_below_exp(low, 1, random_bytes, scale_bits)]
    high = np.zeros(len(low), np.int64)
    going = np.arange(len(low))
    while len(going):
        going = going[_below_exp(np.full(len(going), scale), 1, random_bytes, scale_bits)]
        high[going] += 1
    size = low + scale * high
    negative = (_words(len(size), random_bytes) & np.uint64(1)).astype(bool)
    once = ~(negative & (size == 0))  # zero has two signs
    signed: Integers = np.where(negative, -size, size)[once]
    return signed


def _below_exp(
    n: Integers,
    power: int,
    random_bytes: RandomBytes,
    scale_bits: int = SCALE_BITS,
    margin: float = MARGIN,
) -> npt.NDArray[np.bool_]:
    """True with probability ``exp(-(n / s)^power / power)``, exactly; |n| < 2^53."""
    scale = 2**scale_bits
    u = _words(len(n), random_bytes) >> np.uint64(64 - _UNIFORM_BITS)
    below = u * 2.0**-_UNIFORM_BITS - np.exp(-((n / scale) ** power) / power)
    result: npt.NDArray[np.bool_] = below < 0
    for i in np.flatnonzero(np.abs(below) < margin):
        exponent = Fraction(int(n[i]), scale) ** power / power
        result[i] = _decide(int(u[i]), exponent, random_bytes)
    return result


def _decide(u: int, exponent: Fraction, random_bytes: RandomBytes) -> bool:
    """Whether the uniform that begins with the 53 bits ``u`` is below ``exp(-exponent)``."""
    bits = _UNIFORM_BITS
    while exponent:
        with decimal.localcontext(prec=bits // 3 + 10) as context:
            ratio = decimal.Decimal(-exponent.numerator) / exponent.denominator
            value = Fraction(ratio.exp(context))
        error = Fraction(1 + exponent, 10 ** (bits // 3 + 8))
        if Fraction(u + 1, 2**bits) <= value - error:
            return True
        if Fraction(u, 2**bits) >= value + error:
            return False
        u = (u << _MORE_BITS) | int.from_bytes(random_bytes(_MORE_BITS // 8), "big")
        bits += _MORE_BITS
    return True


def _words(count: int, random_bytes: RandomBytes) -> npt.NDArray[np.uint64]:
    return np.frombuffer(random_bytes(8 * count), np.uint64)
