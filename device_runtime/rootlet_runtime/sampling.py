"""Poisson sampling: every example enters a step on its own, with the same probability.

The draws come from the operating system's secure generator and are kept nowhere: amplification by
sampling holds only while nobody learns who was drawn.
"""

import os
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from rootlet_runtime.noise import RandomBytes

_WORD = 2**64


def poisson_sample(
    examples: int, sample_rate: float, random_bytes: RandomBytes = os.urandom
) -> npt.NDArray[np.int64]:
    """The rows that are drawn, ascending; there may be none.

    Args:
        examples: how many there are.
        sample_rate: q, 0 to 1; rounded down to a multiple of 2^-64.
        random_bytes: where the secure randomness comes from.
    """
    threshold = int(Fraction(sample_rate) * _WORD)
    if threshold >= _WORD:
        return np.arange(examples)
    words = np.frombuffer(random_bytes(8 * examples), np.uint64)
    return np.flatnonzero(words < np.uint64(threshold))
