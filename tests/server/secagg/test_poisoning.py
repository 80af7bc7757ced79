"""Group sums with a median against malicious devices that send everything fifty times."""

import random

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rootlet_server.federation.events import EventLog
from rootlet_server.secagg.rounds import SecureRound, combined
from rootlet_server.secagg.settings import SecureSettings

DEVICES, ATTACKERS, TIMES, ROUNDS = 100, 3, 50, 30


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float64), y[order]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def accuracy_with(combine):
    """Of multinomial regression, trained by a hundred devices of which three are malicious."""
    x, y = digits()
    held, shards = slice(1500, None), np.array_split(np.arange(1500), DEVICES)
    weights = np.zeros((10, 64))
    rng = np.random.default_rng(1)
    for _ in range(ROUNDS):
        updates = []
        for number, rows in enumerate(shards):
            found = np.zeros_like(weights)
            for _ in range(5):
                error = np.eye(10)[y[rows]] - softmax(x[rows] @ (weights + found).T)
                found += 0.5 * error.T @ x[rows] / len(rows)
            updates.append(found * (-TIMES if number < ATTACKERS else 1))
        weights += combine(updates, rng)
    return float(((x[held] @ weights.T).argmax(1) == y[held]).mean())


def plain_mean(updates, rng):
    return np.mean(updates, axis=0)


def median_of_groups(updates, rng):
    """The groups of `SecureRound`, and its rule for their means."""
    settings = SecureSettings(authorities=("ab" * 32,), group_size=5)
    draw = random.Random(int(rng.integers(2**32)))  # noqa: S311
    secure = SecureRound(None, None, settings, round_=1, deadline_s=1.0, rng=draw)
    groups = secure.split(range(DEVICES))
    assert {len(group) for group in groups} == {5}
    return combined([np.mean([updates[n] for n in group], axis=0) for group in groups])


def test_three_of_a_hundred_ruin_a_mean_and_not_a_median_of_groups():
    """1 - (1 - .03)^5 = .14 of the groups are dirty: below a half."""
    assert accuracy_with(plain_mean) < 0.6
    assert accuracy_with(median_of_groups) > 0.9


def test_the_bound_of_the_rule():
    dirty = 1 - (1 - ATTACKERS / DEVICES) ** 5
    assert dirty < 0.5
    assert combined([np.array([1.0])]) == 1.0
    assert combined([np.array([1.0]), np.array([1.1]), np.array([99.0])]) == 1.1


def test_what_is_left_over_makes_some_groups_larger(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    secure = SecureRound(
        None, log, SecureSettings(authorities=("ab" * 32,), group_size=5), round_=1, deadline_s=1.0
    )
    assert sorted(len(group) for group in secure.split(range(13))) == [6, 7]
    assert sorted(n for group in secure.split(range(13)) for n in group) == list(range(13))
    log.close()
    with pytest.raises(Exception, match="group_size is 3"):
        SecureSettings(authorities=("ab" * 32,), group_size=3)
