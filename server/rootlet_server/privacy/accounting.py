"""What private steps have spent: epsilon at a delta, by Google's dp-accounting.

The privacy unit is one example, or one device in a round of a federation, and each step is a
Gaussian mechanism on a Poisson sample of units; what is charged together has one unit.
Neighbouring data sets differ by one unit more or less; where a replay buffer took part, by one
that is replaced by one that adds nothing (zero-out), for which the privacy loss is the same: a sum
with and without one clipped term. A step that holds the one bound holds the other: both compose.

Epsilon comes from privacy loss distributions (Doroshenko et al. 2022), which are tight; Renyi
accounting (Mironov 2017) is a looser bound by other means, and serves as the cross-check.
Amplification by sampling is claimed for secret Poisson samples that a device draws, and for
nothing else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dp_accounting import dp_event, privacy_accountant
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.rdp import rdp_privacy_accountant
from scipy.optimize import brentq

from rootlet_runtime.errors import RootletError
from rootlet_runtime.private_report import ADD_OR_REMOVE, ZERO_OUT, PrivacySpent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNITS, NEIGHBOURS = ("example", "device"), (ADD_OR_REMOVE, ZERO_OUT)
_RELATION = privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE
SMALLEST_NOISE, LARGEST_NOISE = 0.1, 1e4
TOLERANCE = 1e-4


class AccountingError(RootletError, ValueError):
    """A mechanism that cannot be accounted for, or a budget that cannot be met."""


def epsilon(spent: Iterable[PrivacySpent], delta: float) -> float:
    """The epsilon of all of it together, adaptively composed.

    Args:
        spent: what private fits report, on the same examples.
        delta: 0 to 1; well below one over the number of examples.

    Raises:
        AccountingError: another unit or relation than this accountant's, or an impossible value.
    """
    return _epsilon(pld_privacy_accountant.PLDAccountant(_RELATION), spent, delta)


def epsilon_by_rdp(spent: Iterable[PrivacySpent], delta: float) -> float:
    """The same by Renyi divergences: never less, up to the discretisation of :func:`epsilon`."""
    return _epsilon(
        rdp_privacy_accountant.RdpAccountant(neighboring_relation=_RELATION), spent, delta
    )


def noise_multiplier_for(
    target_epsilon: float, delta: float, *, sample_rate: float, steps: int
) -> float:
    """The noise multiplier that keeps ``steps`` within a budget: the smallest from 0.1 on, to 1e-4.

    Raises:
        AccountingError: a value that is impossible, or a budget that no noise up to 10^4 meets.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise AccountingError(f"target_epsilon {target_epsilon}: must be positive; 8 to 1 is usual")

    def excess(noise_multiplier: float, charge: Callable[..., float] = epsilon) -> float:
        spent = PrivacySpent(
            steps=steps,
            sample_rate=sample_rate,
            noise_multiplier=noise_multiplier,
            max_grad_norm=1.0,
        )
        return charge([spent], delta) - target_epsilon

    # Distributions of small noise are large: the looser bound, which is cheap, finds the region.
    high = SMALLEST_NOISE
    while excess(high, epsilon_by_rdp) > 0:
        high *= 1.25
        if high > LARGEST_NOISE:
            raise AccountingError(
                f"epsilon {target_epsilon} at delta {delta}: no noise multiplier up to "
                f"{LARGEST_NOISE:g} keeps {steps} steps at rate {sample_rate} within it; "
                "take fewer steps or a smaller rate"
            )
    low = high / 1.5
    while excess(low) <= 0:
        if low < SMALLEST_NOISE:
            return SMALLEST_NOISE
        low, high = low / 1.25, low
    root = float(brentq(excess, low, high, xtol=TOLERANCE * low / 4, rtol=TOLERANCE / 4))
    return root if excess(root) <= 0 else root * (1 + TOLERANCE)


def _epsilon(
    accountant: privacy_accountant.PrivacyAccountant, spent: Iterable[PrivacySpent], delta: float
) -> float:
    if not 0 < delta < 1:
        raise AccountingError(f"delta {delta}: must lie in 0..1, both excluded; 1e-5 is usual")
    charged = list(spent)
    if len(units := sorted({each.unit for each in charged})) > 1:
        raise AccountingError(
            f"units {' and '.join(units)}: epsilons of different units are not added; charge each "
            "on its own"
        )
    for each in charged:
        event = _event(each)
        if each.steps:
            accountant.compose(event, each.steps)
    return float(accountant.get_epsilon(delta))


def _event(spent: PrivacySpent) -> dp_event.DpEvent:
    if spent.unit not in UNITS or spent.neighbours not in NEIGHBOURS:
        raise AccountingError(
            f"unit {spent.unit!r}, neighbours {spent.neighbours!r}: this accountant charges "
            f"{' and '.join(map(repr, UNITS))} under {' or '.join(map(repr, NEIGHBOURS))} only"
        )
    if not (0 < spent.sample_rate <= 1 and spent.noise_multiplier > 0 and spent.steps >= 0):
        raise AccountingError(f"{spent}: rates lie in 0..1, noise is positive, steps are counted")
    gaussian = dp_event.GaussianDpEvent(spent.noise_multiplier)
    return dp_event.PoissonSampledDpEvent(spent.sample_rate, gaussian)
