"""What a device has spent, by Renyi differential privacy, without the server's accountant.

A Gaussian mechanism of noise multiplier z on a Poisson sample of rate q has, at whole orders a,

    RDP(a) = a / (2 z^2)                                                          for q = 1
    RDP(a) = log(sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 z^2))) / (a - 1)   else

(Mironov, Talwar & Zhang 2019, section 3.3); mechanisms add up, and for every order

    epsilon = RDP(a) + log((a - 1) / a) - (log(delta) + log(a)) / (a - 1)

(Canonne, Kamath & Steinke 2020, proposition 12). An upper bound, a few per cent above that of the
privacy loss distributions by which the server accounts; tests hold it to Google's dp-accounting.
"""

import math
from collections.abc import Iterable

from rootlet_runtime.private_report import PrivacySpent

ORDERS = (*range(2, 65), *range(72, 129, 8), 192, 256, 384, 512, 1024)


def epsilon_at_most(spent: Iterable[PrivacySpent], delta: float) -> float:
    """A bound on the epsilon of all of it together; 0 for nothing.

    Args:
        spent: Of one unit.
        delta: 0 to 1, both excluded.
    """
    charged = [each for each in spent if each.steps]
    if not charged:
        return 0.0
    best = math.inf
    for order in ORDERS:
        divergence = sum(
            each.steps * _renyi(order, each.sample_rate, each.noise_multiplier) for each in charged
        )
        bound = (
            divergence
            + math.log((order - 1) / order)
            - (math.log(delta) + math.log(order)) / (order - 1)
        )
        best = min(best, bound)
    return max(best, 0.0)


def _renyi(order: int, rate: float, noise_multiplier: float) -> float:
    if rate >= 1:
        return order / (2 * noise_multiplier**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return total / (order - 1)


def in_words(epsilon: float, delta: float, unit: str, neighbours: str) -> str:
    """Epsilon is never told without its delta, unit and relation."""
    return f"epsilon {epsilon:.3g} at delta {delta:g} (per {unit}, {neighbours})"
