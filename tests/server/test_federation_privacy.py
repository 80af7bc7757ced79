"""Privacy of a federation: what is charged, when it stops, and what the noise is."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rootlet.ledger import read, verify
from rootlet.privacy_terms import PrivacyAccount, PrivacyPolicy, PrivacyTerms
from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.privacy import (
    BudgetSpentError,
    FederationAccount,
    FederationPrivacy,
    noisy_mean,
)
from rootlet_server.federation.strategies import Update
from rootlet_server.privacy.accounting import epsilon

BY_DEVICE = FederationPrivacy(unit="device", max_norm=1.0, noise_multiplier=4.0, epsilon=2.0)
SIZE = 20_000


def update(node, trained, received):
    return Update(node=node, received=received, trained=trained, num_examples=9, loss=1.0)


def test_a_round_is_charged_before_it_begins_and_the_budget_holds_over_a_restart(tmp_path):
    rounds = 0

    def begin():
        account = FederationAccount(tmp_path, BY_DEVICE)  # the server restarts before every round
        told = account.begin(rounds + 1, epochs=1, bundle="m 1")
        shown = f"epsilon {account.epsilon():.3g} at delta 1e-05 (per device, zero-out-one)"
        assert told == shown

    while FederationAccount(tmp_path, BY_DEVICE).epsilon(BY_DEVICE.of_round(1)) <= 2.0:
        begin()
        rounds += 1
    with pytest.raises(BudgetSpentError, match="nothing more is released"):
        begin()
    each = PrivacySpent(
        steps=1, sample_rate=1.0, noise_multiplier=4.0, max_grad_norm=1.0, unit="device",
        neighbours="zero-out-one",
    )  # fmt: skip
    assert epsilon([replace(each, steps=rounds)], 1e-5) <= 2.0
    assert epsilon([replace(each, steps=rounds + 1)], 1e-5) > 2.0
    assert verify(tmp_path).number == rounds
    entry = read(tmp_path)[-1].fields
    assert entry["epsilon"] <= entry["epsilon_by_renyi"]


def test_a_repeated_round_is_charged_again(tmp_path):
    account = FederationAccount(tmp_path, BY_DEVICE)
    account.begin(1, epochs=1, bundle="m 1")
    once = account.epsilon()
    account.begin(1, epochs=1, bundle="m 1")
    assert account.epsilon() > once


def test_by_example_every_step_of_a_round_is_charged(tmp_path):
    privacy = FederationPrivacy(
        unit="example", max_norm=1.0, noise_multiplier=1.0, epsilon=9.0, sample_rate=0.05
    )
    account = FederationAccount(tmp_path, privacy)
    assert "per example, add-or-remove-one" in account.begin(1, epochs=2, bundle="m 1")
    assert read(tmp_path)[0].fields["mechanism"]["steps"] == 40
    assert privacy.of_round(2).sample_rate == 0.05


@pytest.mark.parametrize("huge", [1e30, np.inf, -np.inf, np.nan, 0.0])
def test_one_device_moves_the_sum_by_the_clipping_norm_at_most(huge):
    received = {"w": np.zeros(8, np.float32)}
    others = [update(i, {"w": np.full(8, 0.1, np.float32)}, received) for i in range(4)]
    wild = update(9, {"w": np.full(8, huge, np.float32)}, received)
    still = FederationPrivacy(unit="device", max_norm=0.5, noise_multiplier=0.01, epsilon=1e5)
    sums = [
        5 * noisy_mean(received, [*others, each], still).trained["w"].astype(np.float64)
        for each in (wild, update(9, received, received))
    ]
    # Two draws of noise of 0.005 in eight numbers: 0.1 is six of their standard deviations.
    assert np.linalg.norm(sums[0] - sums[1]) < 0.5 + 0.1


def test_the_noise_is_gaussian_of_the_promised_size_and_new_every_time():
    received = {"a": np.zeros(SIZE, np.float32), "b": np.zeros(3, np.float32)}
    updates = [update(i, received, received) for i in range(5)]
    draws = [noisy_mean(received, updates, BY_DEVICE).trained["a"] * 5 / 4.0 for _ in range(2)]
    assert stats.kstest(draws[0], "norm").pvalue > 1e-4
    assert stats.chi2.sf(float(np.sum(draws[0] ** 2)), SIZE) > 1e-4
    assert stats.chi2.cdf(float(np.sum(draws[0] ** 2)), SIZE) > 1e-4
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / math.sqrt(SIZE)


def test_a_device_refuses_beyond_its_own_budget_and_remembers_it(tmp_path):
    spent = BY_DEVICE.of_round(1)
    account = PrivacyAccount(PrivacyPolicy(max_epsilon=1.5))
    account.require(spent)
    fields = account.charged(spent)
    assert fields["unit"] == "device"
    account.charged(spent)
    with pytest.raises(Exception, match="its budget is spent"):
        account.require(spent)
    with pytest.raises(Exception, match="asks for 9 at least"):
        PrivacyAccount(PrivacyPolicy(min_noise_multiplier=9)).require(spent)


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "user"}, {"max_norm": 0.0}, {"noise_multiplier": math.inf}, {"epsilon": -1.0},
        {"delta": 1.0}, {"sample_rate": 0.5},
    ],
)  # fmt: skip
def test_impossible_promises_are_refused(changes):
    good = {"unit": "device", "max_norm": 1.0, "noise_multiplier": 1.0, "epsilon": 1.0}
    with pytest.raises(ServeConfigError, match=next(iter(changes))):
        FederationPrivacy(**(good | changes))


def test_terms_travel_and_bad_ones_are_refused():
    terms = BY_DEVICE.terms
    assert PrivacyTerms.of(terms.to_records()) == terms
    assert PrivacyTerms.of({}) is None
    for name, value in (("unit", "user"), ("max_norm", math.nan), ("sample_rate", 2.0)):
        records = {"privacy": {**terms.to_records()["privacy"], name: value}}
        with pytest.raises(Exception, match=name):
            PrivacyTerms.of(records)
    with pytest.raises(Exception, match="privacy"):
        PrivacyTerms.of({"privacy": {**terms.to_records()["privacy"], "more": 1.0}})
