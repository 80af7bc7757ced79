"""The accountant against published and exact values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.privacy import epsilon, epsilon_by_rdp, noise_multiplier_for
from rootlet_server.privacy.accounting import AccountingError

DELTA = 1e-5


def spent(sample_rate, noise_multiplier, steps):
    return PrivacySpent(
        steps=steps, sample_rate=sample_rate, noise_multiplier=noise_multiplier, max_grad_norm=1.0
    )


def gaussian_epsilon(noise_multiplier, steps):
    """Exact without sampling: Balle & Wang 2018, steps compose to sigma / sqrt(steps)."""
    mu = np.sqrt(steps) / noise_multiplier

    def excess(eps):
        ratio = norm.cdf(mu / 2 - eps / mu) - np.exp(eps) * norm.cdf(-mu / 2 - eps / mu)
        return ratio - DELTA

    return brentq(excess, 0, 200)


# PLD and RDP of dp-accounting 0.6, PRV of Opacus 1.6, computed by each library's own program.
@pytest.mark.parametrize(
    ("mechanism", "pld", "rdp", "prv"),
    [
        ((0.01, 1, 1000), 1.828, 2.101, 1.838),
        ((0.05, 1, 500), 7.524, 8.30, 7.534),
        ((1, 5, 50), 6.573, 7.077, 6.583),
    ],
)
def test_known_values(mechanism, pld, rdp, prv):
    found = epsilon([spent(*mechanism)], DELTA)
    assert found == pytest.approx(pld, abs=1e-3)
    assert abs(found - prv) < 0.02
    looser = epsilon_by_rdp([spent(*mechanism)], DELTA)
    assert looser == pytest.approx(rdp, abs=5e-3)
    assert found <= looser


@pytest.mark.parametrize(("noise_multiplier", "steps"), [(5, 50), (2, 1), (10, 100)])
def test_without_sampling_it_is_exact(noise_multiplier, steps):
    exact = gaussian_epsilon(noise_multiplier, steps)
    assert epsilon([spent(1, noise_multiplier, steps)], DELTA) == pytest.approx(exact, rel=1e-3)


def test_fits_compose():
    whole, half = spent(1, 5, 50), spent(1, 5, 25)
    expected = epsilon([whole], DELTA)
    assert epsilon([half, half], DELTA) == pytest.approx(expected, rel=1e-3)
    assert epsilon([half, spent(1, 10, 25)], DELTA) < expected


def test_a_device_is_charged_as_an_example_is():
    whole = spent(0.1, 1, 10)
    assert epsilon([replace(whole, unit="device")], DELTA) == epsilon([whole], DELTA)


def test_nothing_costs_nothing():
    assert epsilon([], DELTA) == epsilon([spent(1, 5, 0)], DELTA) == 0


def test_the_noise_for_a_budget_meets_it_and_no_more():
    found = noise_multiplier_for(4, DELTA, sample_rate=1, steps=20)
    assert 4 * (1 - 1e-3) < epsilon([spent(1, found, 20)], DELTA) <= 4
    assert gaussian_epsilon(found, 20) == pytest.approx(4, rel=1e-3)


def test_what_cannot_be_accounted_for_is_refused():
    good = spent(0.1, 1, 10)
    with pytest.raises(AccountingError, match="unit 'household'"):
        epsilon([replace(good, unit="household")], DELTA)
    with pytest.raises(AccountingError, match="device and example"):
        epsilon([good, replace(good, unit="device")], DELTA)
    with pytest.raises(AccountingError, match="replace-one"):
        epsilon([replace(good, neighbours="replace-one")], DELTA)
    for wrong in ({"sample_rate": 1.5}, {"noise_multiplier": 0.0}, {"steps": -1}):
        with pytest.raises(AccountingError, match="rates lie"):
            epsilon([replace(good, **wrong)], DELTA)
    for delta in (0, 1):
        with pytest.raises(AccountingError, match="delta"):
            epsilon([good], delta)
    with pytest.raises(AccountingError, match="target_epsilon"):
        noise_multiplier_for(0, DELTA, sample_rate=1, steps=1)
    with pytest.raises(AccountingError, match="take fewer steps"):
        noise_multiplier_for(1e-4, DELTA, sample_rate=1, steps=10**7)
