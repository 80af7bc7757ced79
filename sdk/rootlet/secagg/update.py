"""From an adapter's update to the whole numbers that a device adds to a sum, and back.

Without noise each value saturates at the plan's bound. With noise (Kairouz et al. 2021, algorithm
1) the update x in R^d is clipped, scaled, rotated and rounded, and a discrete Gaussian is added:

    x' = s R x min(1, C / ||x||),   q = round(x'), again until ||q|| <= longest,   q + N_Z(0, 4^b)

so that one device changes the sum of all by at most ``NoisePlan.longest``, whatever it computed.
"""

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.quantise import largest_value, quantise
from rootlet.secagg.rotation import rotate, rotate_back
from rootlet_runtime.noise import discrete_gaussian

MOST_ROUNDINGS = 1000
"""Each is short enough with a probability of 0.39 at least: a thousand fail once in 10^200."""

Arrays = Mapping[str, npt.NDArray[np.float32]]
Whole = npt.NDArray[np.int64]


def flat(arrays: Arrays) -> npt.NDArray[np.float32]:
    """All arrays as one vector, in the order of their names."""
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)])


def unflat(values: npt.NDArray[np.floating], like: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays that `flat` made a vector of."""
    found, start = {}, 0
    for name in sorted(like):
        size = like[name].size
        part = values[start : start + size]
        found[name] = part.astype(np.float32).reshape(like[name].shape)
        start += size
    return {name: found[name] for name in like}


def encode(update: npt.NDArray[np.float32], plan: SecurePlan) -> Whole:
    """The whole numbers of an update, with its share of the noise, int64 [d].

    Raises:
        SecureRoundRefusedError: No rounding is short enough: the plan's numbers do not fit.
    """
    if plan.noise is None:
        return quantise(update, plan.unit_inverse, plan.value_bits).astype(np.int64)
    rounded = _bounded_rounding(clipped(update, plan.noise.clip_norm), plan, plan.noise)
    return rounded + discrete_gaussian(len(update), scale_bits=plan.noise.scale_bits)


def decode(total: Whole, plan: SecurePlan, devices: int) -> npt.NDArray[np.float64]:
    """The mean update of so many devices from their sum, float64 [d]."""
    mean = total / (plan.unit_inverse * devices)
    return mean if plan.noise is None else rotate_back(mean, plan.digest)


def clipped(update: npt.NDArray[np.float32], norm: float) -> npt.NDArray[np.float64]:
    """``x min(1, C / ||x||)``; an update that is not finite becomes zero."""
    wide = update.astype(np.float64)
    if not np.isfinite(wide).all():
        return np.zeros_like(wide)
    length = float(np.linalg.norm(wide))
    return wide * (norm / length) if length > norm else wide


def _bounded_rounding(update: npt.NDArray[np.float64], plan: SecurePlan, noise: NoisePlan) -> Whole:
    scaled = rotate(update, plan.digest) * noise.unit_inverse
    longest, largest = noise.longest(plan.values), largest_value(plan.value_bits)
    low = np.floor(scaled)
    for _ in range(MOST_ROUNDINGS):
        up = np.frombuffer(os.urandom(4 * len(scaled)), np.uint32) * 2.0**-32 < scaled - low
        whole: Whole = np.clip((low + up).astype(np.int64), -largest, largest)
        if float(np.linalg.norm(whole.astype(np.float64))) <= longest:
            return whole
    raise SecureRoundRefusedError(
        f"no rounding of the update is within {longest:.4g} units: the plan's unit_inverse "
        f"{noise.unit_inverse:g} is too small for {plan.values} values"
    )
