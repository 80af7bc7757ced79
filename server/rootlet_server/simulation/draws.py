"""Random numbers that belong to a client: functions of its number, with nothing to store.

A million clients have a speed, a time zone and a network each without a table of them. The hash is
SplitMix64's finaliser (Steele et al. 2014); it passes statistical tests and protects nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    import numpy.typing as npt

    Clients = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_UNIT = 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def bits(clients: Clients, *key: int) -> npt.NDArray[np.uint64]:
    """64 bits for each client, fixed by the client and the key."""
    with np.errstate(over="ignore"):
        z = np.asarray(clients).astype(np.uint64)
        for part in key:
            z = _mix((z + _GOLDEN) ^ _mix(np.array([part], np.int64).astype(np.uint64) + _GOLDEN))
        return _mix(z + _GOLDEN)


def uniform(clients: Clients, *key: int) -> npt.NDArray[np.float64]:
    """One number in (0, 1) for each client, fixed by the client and the key."""
    z = bits(clients, *key) >> np.uint64(11)
    result: npt.NDArray[np.float64] = (z.astype(np.float64) + 0.5) * _UNIT
    return result


def normal(clients: Clients, *key: int) -> npt.NDArray[np.float64]:
    """One standard normal number for each client."""
    result: npt.NDArray[Any] = ndtri(uniform(clients, *key))
    return result
