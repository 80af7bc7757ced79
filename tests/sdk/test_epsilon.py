"""A device's own bound on epsilon, held to Google's dp-accounting."""

import pytest

from rootlet.epsilon import epsilon_at_most, in_words
from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.privacy.accounting import epsilon, epsilon_by_rdp


def spent(rate, noise, steps):
    return PrivacySpent(steps=steps, sample_rate=rate, noise_multiplier=noise, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [(0.01, 1.0, 1000), (0.05, 1.0, 500), (1.0, 5.0, 50), (1.0, 1.0, 1), (0.2, 2.0, 30)],
)
def test_it_is_above_the_tight_bound_and_close_to_the_renyi_one(rate, noise, steps):
    mechanism, delta = [spent(rate, noise, steps)], 1e-5
    found = epsilon_at_most(mechanism, delta)
    assert epsilon(mechanism, delta) <= found
    # Google's orders are finer, by fractions; the same inequality otherwise.
    assert found == pytest.approx(epsilon_by_rdp(mechanism, delta), rel=0.03)


def test_different_mechanisms_compose():
    both = [spent(0.05, 1.0, 200), spent(1.0, 8.0, 3)]
    assert epsilon(both, 1e-5) <= epsilon_at_most(both, 1e-5)
    assert epsilon_at_most(both, 1e-5) == pytest.approx(epsilon_by_rdp(both, 1e-5), rel=0.03)
    assert epsilon_at_most(both, 1e-5) > epsilon_at_most(both[:1], 1e-5)


def test_nothing_spends_nothing():
    assert epsilon_at_most([], 1e-5) == 0
    assert epsilon_at_most([spent(1.0, 1.0, 0)], 1e-5) == 0


def test_epsilon_is_told_with_all_that_it_depends_on():
    assert in_words(2.345, 1e-5, "device", "zero-out-one") == (
        "epsilon 2.35 at delta 1e-05 (per device, zero-out-one)"
    )
