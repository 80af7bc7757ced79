"""Sums of updates: weights, clipping, the integers of secure aggregation, noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation.privacy import DevicePrivacy, Finish
from rootlet_server.simulation.uploads import (
    Partial,
    SecureAggregation,
    Upload,
    clip_factors,
    sum_up,
)

RECEIVED = {"a": np.array([[1.0, 2.0]], np.float32), "b": np.array([0.5], np.float32)}


def stack(*updates):
    """Adapters whose updates of (a, a, b) are these."""
    rows = np.array(updates, np.float32)
    return {
        "a": torch.from_numpy(RECEIVED["a"] + rows[:, None, :2]),
        "b": torch.from_numpy(RECEIVED["b"] + rows[:, 2:]),
    }


def total(upload, updates, examples, keep=None):
    count = len(updates)
    keep = np.ones(count, bool) if keep is None else np.array(keep)
    return sum_up(upload, stack(*updates), RECEIVED, np.array(examples), keep, list(range(count)))


def test_a_weighted_mean_by_hand():
    found = total(Upload(partial=True), [(1, 0, 0), (0, 2, 4)], [1, 3])
    assert (found.weight, found.clients) == (4, 2)
    mean = found.mean(None)
    np.testing.assert_allclose(mean["a"], [[1.25, 3.5]])
    np.testing.assert_allclose(mean["b"], [3.5])


def test_clipping_by_hand():
    """Norms 5 and 0.5 at C = 1: the first counts a fifth, the second whole; all weigh the same."""
    found = total(Upload(partial=True, clipping_norm=1.0), [(3, 0, 4), (0, 0.5, 0)], [1, 99])
    np.testing.assert_allclose(found.values["a"], [[0.6, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(found.values["b"], [0.8], rtol=1e-6)
    assert (found.weight, found.clients) == (2, 2)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 3), min_size=1, max_size=5))
def test_no_client_moves_a_clipped_sum_by_more_than_the_bound(updates):
    norm = 0.7
    upload = Upload(partial=True, clipping_norm=norm)
    whole = total(upload, updates, [1] * len(updates))
    without = total(upload, updates, [1] * len(updates), [False] + [True] * (len(updates) - 1))
    moved = math.sqrt(
        sum(float(((whole.values[n] - without.values[n]) ** 2).sum()) for n in RECEIVED)
    )
    assert moved <= norm * (1 + 1e-9)


def test_clients_that_are_left_out_add_nothing_even_if_not_finite():
    found = total(Upload(partial=True), [(np.nan, 0, 0), (0, 1, 0)], [5, 2], keep=[False, True])
    assert (found.weight, found.clients) == (2, 1)
    assert all(np.isfinite(value).all() for value in found.values.values())


def test_parts_add_up_to_the_whole_modulo_the_modulus():
    secure = SecureAggregation(value_bits=8, modulus_bits=12, bound=1.0)
    upload = Upload(partial=True, clipping_norm=1.0, secure=secure)
    updates = [(0.5, -0.25, 0.1), (-1, 0, 0), (0, 0.9, -0.4)]
    whole = total(upload, updates, [1, 1, 1])
    parts = [total(upload, updates, [1, 1, 1], [i == k for i in range(3)]) for k in range(3)]
    added = parts[0].plus(parts[1], secure).plus(parts[2], secure)
    assert added.weight == whole.weight
    for name, value in whole.values.items():
        assert value.dtype == np.int64
        assert (value >= 0).all()
        assert (value < 2**12).all()
        np.testing.assert_array_equal(added.values[name], value)


@given(st.lists(st.tuples(*[st.floats(-3, 3, width=32)] * 3), min_size=1, max_size=6))
def test_secure_aggregation_is_off_by_less_than_a_unit_each(updates):
    secure = SecureAggregation(value_bits=10, modulus_bits=24, bound=2.0, max_examples=4)
    examples = [1 + k for k in range(len(updates))]
    found = total(Upload(partial=True, secure=secure), updates, examples)
    weights = np.minimum(examples, 4) / 4
    rows = np.float64(np.float32(updates)) * weights[:, None]
    expected = np.clip(rows, -2, 2).sum(0) / weights.sum()
    unit = 2.0 / secure.largest
    mean = found.mean(secure)
    got = np.concatenate([mean["a"].ravel(), mean["b"]])
    # each value is off by less than a unit, and each weight by half of 1 / largest
    bound = (unit * len(updates) + np.abs(expected) * len(updates) / secure.largest) / weights.sum()
    assert (np.abs(got - expected) <= bound + 1e-5).all()


def test_rounding_is_right_on_average():
    secure = SecureAggregation(value_bits=4, modulus_bits=32, bound=1.0)
    upload = Upload(partial=True, clipping_norm=1.0, secure=secure)
    found = total(upload, [(0.1, 0.0, 0.0)] * 4000, [1] * 4000).mean(secure)
    # of a Bernoulli with deviation at most half a unit
    assert abs(found["a"][0, 0] - 0.1) < 5 * 0.5 / 7 / math.sqrt(4000)
    assert abs(found["a"][0, 0] - 0.1) > 0  # 0.1 lies between two steps


def test_a_cohort_that_could_wrap_around_is_refused():
    secure = SecureAggregation(value_bits=8, modulus_bits=16)
    secure.check_cohort(258)
    with pytest.raises(SimulationConfigError, match="at most 258 fit"):
        secure.check_cohort(259)


def test_noise_has_its_deviation_and_is_never_drawn_twice():
    privacy = DevicePrivacy(clipping_norm=2.0, noise_multiplier=0.5)
    received = {"a": np.zeros(40_000, np.float32)}
    nothing = Partial(values={"a": np.zeros(40_000)}, weight=10.0, clients=10)

    def finish(round_):
        return Finish(privacy=privacy, secure=None, expected=10.0, seed=1, round=round_)(
            nothing, received
        )["a"]

    one, two = finish(1), finish(2)
    expected = 0.5 * 2.0 / 10
    assert one.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * len(one)))
    assert one.std() != pytest.approx(expected * 1.1, rel=5 / math.sqrt(2 * len(one)))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(len(one))


def test_the_denominator_is_the_expected_cohort():
    """Twelve came where ten were expected: the sum is divided by ten."""
    privacy = DevicePrivacy(clipping_norm=1.0, noise_multiplier=0.0)
    came = Partial(values={"a": np.full(3, 6.0)}, weight=12.0, clients=12)
    found = Finish(privacy=privacy, secure=None, expected=10.0, seed=1, round=1)(
        came, {"a": np.ones(3, np.float32)}
    )
    np.testing.assert_allclose(found["a"], 1.6)


def test_rounding_is_part_of_the_sensitivity():
    privacy = DevicePrivacy(clipping_norm=1.0, noise_multiplier=1.0)
    secure = SecureAggregation(value_bits=8, bound=1.0)
    assert privacy.sensitivity(100, None) == 1.0
    assert privacy.sensitivity(100, secure) == pytest.approx(1 + 10 / 127)


def test_factors_bound_norms_over_all_tensors():
    updates = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0], [0.4]])}
    torch.testing.assert_close(clip_factors(updates, 1.0), torch.tensor([0.2, 1.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SecureAggregation(value_bits=1), "value_bits"),
        (lambda: SecureAggregation(value_bits=16, modulus_bits=16), "modulus_bits"),
        (lambda: SecureAggregation(bound=0.0), "bound"),
        (lambda: DevicePrivacy(clipping_norm=0.0, noise_multiplier=1.0), "clipping_norm"),
        (lambda: DevicePrivacy(clipping_norm=1.0, noise_multiplier=-1.0), "noise_multiplier"),
        (lambda: DevicePrivacy(clipping_norm=1.0, noise_multiplier=1.0, delta=1.0), "delta"),
    ],
)
def test_bounds(make, message):
    with pytest.raises(SimulationConfigError, match=message):
        make()
