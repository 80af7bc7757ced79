"""Who shares secrets with whom (Bell et al. 2020): a random regular graph that nobody chooses.

The places of the roster are shuffled by the keystream of the roster's own hash, laid out on a ring,
and each is joined to the k / 2 places on either side. Every honest device puts fresh keys into the
roster, so neither the server nor a device can choose its neighbours; each device checks that its
own are those of the graph.
"""

import hashlib

from rootlet.secagg.keys import DOMAIN
from rootlet.secagg.masks import keystream

COMPLETE_UP_TO = 64


def neighbours(context: bytes, devices: int, degree: int) -> list[tuple[int, ...]]:
    """The neighbours of each place, sorted, without the place itself.

    Args:
        context: SHA-256 of the roster.
        devices: n.
        degree: k, even; from n - 1 on the graph is complete.
    """
    if degree >= devices - 1:
        return [tuple(j for j in range(devices) if j != i) for i in range(devices)]
    ring = _shuffled(context, devices)
    found: list[tuple[int, ...]] = [()] * devices
    for at, i in enumerate(ring):
        around = (ring[(at + step) % devices] for step in range(-degree // 2, degree // 2 + 1))
        found[i] = tuple(sorted(j for j in around if j != i))
    return found


def _shuffled(context: bytes, devices: int) -> list[int]:
    """Fisher-Yates by 64-bit words of a keystream; the remainder's bias is below 2^-44."""
    key = hashlib.sha256(DOMAIN + b"graph" + context).digest()
    words = keystream(key, 8 * devices)
    order = list(range(devices))
    for last in range(devices - 1, 0, -1):
        word = int.from_bytes(words[8 * last : 8 * last + 8], "little")
        other = word % (last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def degree_for(devices: int) -> int:
    """K by the size of the cohort: complete up to 64, then 32 at 100 and 96 at 1,000 devices.

    Between and beyond them it grows with the logarithm of n, as Bell et al. 2020 (table 1) for
    10 % corrupt and 30 % lost devices at 2^-40.
    """
    if devices <= COMPLETE_UP_TO:
        return devices - 1
    if devices <= 128:
        return 32
    return 64 if devices <= 512 else 96


def threshold_for(devices: int, degree: int) -> int:
    """t: more than two thirds of those who hold a device's shares, itself among them.

    Two different sets of living devices can then not both find t signatures unless a third of the
    holders sign both.
    """
    return 2 * min(devices, degree + 1) // 3 + 1
