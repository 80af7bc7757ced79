"""Strategies on small adapters: their formulas, what they withstand, what they keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.strategies import (
    STRATEGIES,
    Update,
    make_settings,
    make_strategy,
)

RATE = 0.1
SHAPES = {"a.lora_B": (3, 2), "head.bias": (3,), "head.weight": (3, 4)}
FLOWERS = sorted(set(STRATEGIES) - {"fedbuff", "loramean", "scaffold"})


def draw(rng, scale=1.0):
    return {name: (scale * rng.normal(size=s)).astype(np.float32) for name, s in SHAPES.items()}


def moved(received, rng, count, scale=0.1):
    """Answers near the adapter that was sent."""
    return [
        Update(
            node=node,
            received=received,
            trained={name: received[name] + each for name, each in draw(rng, scale).items()},
            num_examples=int(rng.integers(1, 50)),
            loss=float(rng.uniform(0.1, 2)),
        )
        for node in range(count)
    ]  # fmt: skip


def strategy(name, **options):
    return make_strategy(name, options, learning_rate=RATE)


def run(name, rounds=3, count=7, **options):
    """Adapters after each round, and the answers, in float64 from then on."""
    rng = np.random.default_rng(0)
    made, now, story = strategy(name, **options), draw(rng), []
    for round_ in range(1, rounds + 1):
        updates = moved(now, rng, count)
        after = made.aggregate(round_, now, updates)
        story.append((now, updates, after))
        now = after
    return story


def stacked(updates, name):
    return np.stack([each.trained[name].astype(np.float64) for each in updates])


def weighted(updates, name):
    weights = np.array([each.num_examples for each in updates], np.float64)
    return np.average(stacked(updates, name), axis=0, weights=weights)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)  # float32 sums of seven


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_mean_is_weighted_by_examples(name):
    for _, updates, after in run(name):
        for key in SHAPES:
            close(after[key], weighted(updates, key))


def test_momentum_goes_on():
    story = run("fedavgm", momentum=0.5, server_learning_rate=0.7)
    for key in SHAPES:
        velocity = 0.0
        for before, updates, after in story:
            velocity = 0.5 * velocity + before[key].astype(np.float64) - weighted(updates, key)
            close(after[key], before[key] - 0.7 * velocity)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_server_optimisers_follow_reddi_and_others(name):
    story = run(name, eta=0.05)
    for key in SHAPES:
        m, v = 0.0, 0.0
        for round_, (before, updates, after) in enumerate(story, start=1):
            d = weighted(updates, key) - before[key]
            b1, b2, eta = (0.9, 0.99, 0.05) if name != "fedadagrad" else (0.0, 0.0, 0.05)
            m = b1 * m + (1 - b1) * d
            if name == "fedadam":
                v = b2 * v + (1 - b2) * d**2
                eta *= math.sqrt(1 - b2 ** (round_ + 1)) / (1 - b1 ** (round_ + 1))
            elif name == "fedyogi":
                v = v - (1 - b2) * d**2 * np.sign(v - d**2)
            else:
                v = v + d**2
            np.testing.assert_allclose(
                after[key], before[key] + eta * m / (np.sqrt(v) + 1e-3), rtol=1e-4, atol=1e-5
            )


def test_a_worse_off_device_counts_for_more_in_qfedavg():
    for before, updates, after in run("qfedavg", q=2.0):
        lipschitz, deltas, weight = 1 / RATE, dict.fromkeys(SHAPES, 0.0), 0.0
        for each in updates:
            gradient = {
                k: lipschitz * (before[k].astype(np.float64) - each.trained[k]) for k in SHAPES
            }
            norm = sum(float(np.square(g).sum()) for g in gradient.values())
            for key in SHAPES:
                deltas[key] = deltas[key] + each.loss**2 * gradient[key]
            weight += 2 * each.loss * norm + lipschitz * each.loss**2
        for key in SHAPES:
            np.testing.assert_allclose(
                after[key], before[key] - deltas[key] / weight, rtol=1e-4, atol=1e-5
            )  # fmt: skip


def test_qfedavg_bounds_the_loss_that_a_device_claims():
    rng = np.random.default_rng(0)
    now = draw(rng)
    updates = moved(now, rng, 3)
    for claimed in (-1.0, 1e30):
        lie = Update(**{**vars(updates[0]), "loss": claimed})
        after = strategy("qfedavg", q=3.0).aggregate(1, now, [lie, *updates[1:]])
        assert all(np.isfinite(value).all() for value in after.values())


def test_the_median_and_the_trimmed_mean():
    for _, updates, after in run("fedmedian"):
        for key in SHAPES:
            close(after[key], np.median(stacked(updates, key), axis=0))
    for _, updates, after in run("fedtrimmedavg", beta=0.3):
        for key in SHAPES:
            close(after[key], np.sort(stacked(updates, key), axis=0)[2:-2].mean(axis=0))


def krum_order(updates, malicious):
    flat = np.stack(
        [np.concatenate([each.trained[k].ravel() for k in SHAPES]) for each in updates]
    ).astype(np.float64)
    distances = np.square(flat[:, None] - flat[None]).sum(axis=2)
    scores = np.sort(distances, axis=1)[:, 1 : len(updates) - malicious - 1].sum(axis=1)
    return np.argsort(scores)


def test_krum_takes_the_answer_nearest_to_the_others():
    for _, updates, after in run("krum", num_malicious=2):
        best = updates[krum_order(updates, 2)[0]]
        for key in SHAPES:
            close(after[key], best.trained[key])


def test_multikrum_averages_the_nearest():
    for _, updates, after in run("multikrum", num_malicious=2, num_selected=3):
        best = [updates[index] for index in krum_order(updates, 2)[:3]]
        for key in SHAPES:
            close(after[key], weighted(best, key))


def test_krum_tells_updates_apart_that_adapters_of_their_size_would_hide():
    """Adapters near 1e4 and updates near 1e-3: the squares of the adapters lose every digit."""
    rng = np.random.default_rng(3)
    now = {key: np.full(shape, 1e4, np.float32) for key, shape in SHAPES.items()}
    updates = moved(now, rng, 5, scale=4e-3)
    after = strategy("krum").aggregate(1, now, updates)
    chosen = updates[krum_order(updates, 1)[0]]
    for key in SHAPES:
        np.testing.assert_array_equal(after[key], chosen.trained[key])


@pytest.mark.parametrize("name", ["krum", "multikrum", "fedmedian", "fedtrimmedavg"])
@pytest.mark.parametrize("size", [10.0, 1e18])
def test_one_attacker_is_withstood(name, size):
    rng = np.random.default_rng(1)
    now = draw(rng)
    honest = moved(now, rng, 6)
    evil = {key: np.full_like(value, size) for key, value in now.items()}
    attack = Update(node=9, received=now, trained=evil, num_examples=10**5, loss=0.0)
    after = strategy(name).aggregate(1, now, [*honest[:3], attack, *honest[3:]])
    for key in SHAPES:
        low, high = stacked(honest, key).min(axis=0), stacked(honest, key).max(axis=0)
        assert ((after[key] >= low - 1e-5) & (after[key] <= high + 1e-5)).all()
    plain = strategy("fedavg").aggregate(1, now, [*honest, attack])
    assert np.abs(plain["head.bias"]).max() > 9  # the control: the mean follows the attacker


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), count=st.integers(5, 9), name=st.sampled_from(FLOWERS))
def test_the_order_of_the_answers_does_not_matter(seed, count, name):
    rng = np.random.default_rng(seed)
    now = draw(rng)
    updates = moved(now, rng, count)
    first = strategy(name).aggregate(1, now, updates)
    second = strategy(name).aggregate(1, now, [updates[k] for k in rng.permutation(count)])
    for key in SHAPES:
        # FedAdam and others divide by |d| + 1e-3: a last digit of d counts a hundredfold
        np.testing.assert_allclose(first[key], second[key], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", FLOWERS)
def test_devices_that_changed_nothing_change_nothing(name):
    now = draw(np.random.default_rng(2))
    updates = [
        Update(node=node, received=now, trained=now, num_examples=5, loss=1.0) for node in range(8)
    ]
    after = strategy(name).aggregate(1, now, updates)
    assert list(after) == list(now)
    for key, value in now.items():
        assert after[key].dtype == np.float32
        np.testing.assert_allclose(after[key], value, rtol=1e-6)


def test_names_in_another_order_are_paired_by_name():
    rng = np.random.default_rng(4)
    now = draw(rng)
    updates = moved(now, rng, 5)
    turned = [
        Update(**{**vars(each), "trained": dict(reversed(each.trained.items()))})
        for each in updates
    ]
    for name in FLOWERS:
        first = strategy(name).aggregate(1, now, updates)
        second = strategy(name).aggregate(1, now, turned)
        for key in SHAPES:
            np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize("name", FLOWERS)
def test_a_restored_strategy_goes_on_with_the_same_bits(name):
    rng = np.random.default_rng(5)
    first, second, now = strategy(name), strategy(name), draw(rng)
    for round_ in range(1, 5):
        updates = moved(now, rng, 7)
        resumed = strategy(name)
        resumed.restore({k: v.copy() for k, v in second.state().items()}, now)
        second = resumed
        after = first.aggregate(round_, now, updates)
        again = second.aggregate(round_, now, updates)
        for key in SHAPES:
            np.testing.assert_array_equal(after[key], again[key])
        now = after
    kept = {"fedavgm": 3, "fedadam": 6, "fedyogi": 6, "fedadagrad": 6}
    assert len(first.state()) == kept.get(name, 0)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("sgd", {}, "strategy is 'sgd'; it is one of fedadagrad, fedadam, fedavg"),
        ("fedadam", {"lr": "1"}, r"no option 'lr'; it has eta \(0.1\), tau"),
        ("fedavg", {"eta": "1"}, "no option 'eta'; it has no options"),
        ("fedadam", {"eta": "much"}, "eta is 'much'; it must be of type float"),
        ("fedadam", {"eta": "nan"}, "eta is nan; it must be positive"),
        ("fedadam", {"beta_1": "1"}, "beta_1 is 1.0; it must be at least 0 and below 1"),
        ("fedyogi", {"tau": "0"}, "tau is 0.0"),
        ("fedavgm", {"momentum": "-0.1"}, "momentum is -0.1"),
        ("fedprox", {"proximal_mu": "inf"}, "proximal_mu is inf"),
        ("qfedavg", {"q": "-1"}, "q is -1"),
        ("fedtrimmedavg", {"beta": "0.5"}, "beta is 0.5"),
        ("krum", {"num_malicious": "1.5"}, "num_malicious is '1.5'; it must be of type int"),
        ("multikrum", {"num_selected": -1}, "num_selected is -1"),
        ("fedbuff", {"buffer_size": 0}, "buffer_size is 0; it must be at least 1"),
        ("fedbuff", {"max_staleness": -1}, "max_staleness is -1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, options, reason):
    with pytest.raises(ServeConfigError, match=reason):
        make_settings(name, options)


def test_options_are_read_from_text():
    assert make_settings("krum", {"num_malicious": "2"}) == make_settings(
        "krum", {"num_malicious": 2}
    )
    assert make_settings("krum", {"num_malicious": "2"}).least == 7
    assert make_settings("multikrum", {}).least == 5
    assert [make_settings("fedtrimmedavg", {"beta": b}).least for b in (0.2, 0.3, 0.1)] == [
        5,
        4,
        10,
    ]


def test_a_stale_update_moves_the_adapter_by_the_root_of_its_age():
    """Two devices by hand: (1 * 4 / sqrt(1) + 3 * 8 / sqrt(4)) / 4 = 4, against what each got."""
    then, now = {"w": np.zeros(2, np.float32)}, {"w": np.full(2, 10, np.float32)}
    updates = [
        Update(node=1, received=now, trained={"w": now["w"] + 4}, num_examples=1, loss=1.0),
        Update(node=2, received=then, trained={"w": then["w"] + 8}, num_examples=3, loss=1.0,
               staleness=3),
    ]  # fmt: skip
    made = strategy("fedbuff")
    np.testing.assert_allclose(made.aggregate(9, now, updates)["w"], [14, 14])
    half = strategy("fedbuff", server_learning_rate=0.5)
    np.testing.assert_allclose(half.aggregate(9, now, updates)["w"], [12, 12])


def test_fresh_updates_in_a_buffer_are_averaged_as_by_fedavg():
    rng = np.random.default_rng(6)
    now = draw(rng)
    updates = moved(now, rng, 5)
    buffered = strategy("fedbuff").aggregate(1, now, updates)
    mean = strategy("fedavg").aggregate(1, now, updates)
    for key in SHAPES:
        close(buffered[key], mean[key])
