"""Private training on a device: what is added, divided, charged and kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from rootlet_runtime import Bundle, Trainer, private_fit
from rootlet_runtime.batches import gather
from rootlet_runtime.errors import DataError, NonFiniteLossError
from rootlet_runtime.private_fit import PrivateTraining, noise_std, released, sensitivity
from rootlet_runtime.schedule import CONSTANT

FEATURES, CLASSES, EXAMPLES = 400, 10, 60
MECHANISM = PrivateTraining(max_grad_norm=0.5, noise_multiplier=2.0, sample_rate=0.2)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES, FEATURES)).astype(np.float32)
    return x, rng.integers(CLASSES, size=EXAMPLES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, data):
    """A head on features: 4,010 numbers learn by SGD."""
    import torch

    from rootlet_server.compiler import CompileConfig, PrivacyConfig, compile_bundle

    path = tmp_path_factory.mktemp("private") / "head.rootlet"
    torch.manual_seed(0)
    compile_bundle(
        torch.nn.Sequential(torch.nn.Linear(FEATURES, CLASSES)),
        calibration_x=data[0],
        config=CompileConfig(rule="head_only", max_batch=32, privacy=PrivacyConfig()),
        name="head",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


@pytest.fixture
def trainer(bundle):
    return Trainer(bundle)


def fit(trainer, data, privacy=MECHANISM, **options):
    settings = {"epochs": 1, "learning_rate": 1.0, "schedule": CONSTANT, "batch_size": 32}
    return trainer.fit_private(*data, privacy=privacy, **(settings | options))


def flat(adapter):
    return np.concatenate([adapter[name].ravel().astype(np.float64) for name in sorted(adapter)])


def clipped_sum(trainer, x, y, rows, bound):
    batch = gather(x, y, np.asarray(rows), len(rows))
    found = trainer._engine.gradients(batch, bound)
    return flat({k.removeprefix("grads/"): v for k, v in found.items() if k.startswith("grads/")})


def gradients_seen(trainer, data, privacy=MECHANISM, **options):
    """What the optimiser was given at each step, from plain SGD's moves at rate one."""
    seen = [flat(trainer.adapter)]
    options.setdefault("progress", lambda *_: seen.append(flat(trainer.adapter)))
    fit(trainer, data, privacy, **options)
    seen.append(flat(trainer.adapter))
    return [before - after for before, after in pairwise(seen)]


def std_of_step(privacy, expected):
    change = sensitivity(privacy.max_grad_norm, expected=0.2 * EXAMPLES, batch=32)
    parameters = FEATURES * CLASSES + CLASSES
    return noise_std(privacy.noise_multiplier, change, parameters) / expected


def test_with_next_to_no_noise_it_is_the_clipped_mean_of_all(trainer, data):
    """Rate one, and a sample larger than the graph's batch: two runs are added up."""
    privacy = PrivateTraining(max_grad_norm=0.5, noise_multiplier=0.01, sample_rate=1.0)
    expected = clipped_sum(trainer, *data, range(32), 0.5)
    expected = expected + clipped_sum(trainer, *data, range(32, EXAMPLES), 0.5)
    (found,) = gradients_seen(trainer, data, privacy)
    noise = EXAMPLES * found - expected
    assert np.std(noise) == pytest.approx(0.01 * 0.5, rel=0.1)


def test_the_noise_is_that_of_the_mechanism(trainer, data, monkeypatch):
    """Empty samples leave noise alone; chi-square over 20,000 numbers, both ways."""
    monkeypatch.setattr(private_fit, "poisson_sample", lambda *_: np.arange(0))
    noise = np.concatenate(gradients_seen(trainer, data))
    assert len(noise) == 20_050
    std = std_of_step(MECHANISM, expected=0.2 * EXAMPLES)

    def p_value(scale):
        statistic = float(((noise / (scale * std)) ** 2).sum())
        sides = stats.chi2.cdf(statistic, len(noise)), stats.chi2.sf(statistic, len(noise))
        return 2 * min(sides)

    assert p_value(1) > 1e-6
    assert p_value(0.95) < 1e-4
    assert p_value(1.05) < 1e-4


def test_noise_differs_from_step_to_step(trainer, data, monkeypatch):
    monkeypatch.setattr(private_fit, "poisson_sample", lambda *_: np.arange(0))
    steps = gradients_seen(trainer, data)
    assert stats.pearsonr(steps[0], steps[1]).pvalue > 1e-6
    fixed = [released({"g": np.zeros(4010)}, 1.0, np.random.default_rng(0).bytes) for _ in "12"]
    assert stats.pearsonr(fixed[0]["g"], fixed[1]["g"]).pvalue < 1e-4


def test_the_divisor_is_the_expected_batch_not_the_drawn_one(trainer, data, monkeypatch):
    monkeypatch.setattr(private_fit, "poisson_sample", lambda *_: np.arange(3))
    privacy = replace(MECHANISM, noise_multiplier=0.01, expected_batch_size=24.0)
    start = trainer.bundle.initial_adapter()
    expected = clipped_sum(trainer, *data, range(3), 0.5) / 24
    found = gradients_seen(trainer, data, privacy)[0]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected) + 0.02
    assert np.dot(found, expected) / np.dot(expected, expected) == pytest.approx(1, abs=0.05)
    assert start.keys() == trainer.adapter.keys()


@pytest.mark.parametrize("value", [np.float32(1e30), np.float32(0)])
def test_one_example_moves_the_sum_by_the_bound_at_most(trainer, data, value):
    x, y = data[0].copy(), data[1]
    x[1] = value
    whole = clipped_sum(trainer, x, y, [0, 1, 2], 0.5)
    without = clipped_sum(trainer, x, y, [0, 2], 0.5)
    assert np.linalg.norm(whole - without) <= sensitivity(0.5, expected=3, batch=3)


def test_rounding_costs_little():
    assert sensitivity(1.0, expected=64, batch=64) < 1.002
    assert noise_std(1.0, 1.0, 10**6) < 1 + 1e-6
    coarse = released({"g": np.zeros(3)}, 1.0)["g"] * 2**32
    assert np.array_equal(coarse, np.rint(coarse))


def test_the_result_is_the_mechanism_as_data(trainer, data):
    result = fit(trainer, data, epochs=2)
    assert result.steps == result.spent.steps == 10
    assert (result.spent.sample_rate, result.spent.noise_multiplier) == (0.2, 2.0)
    assert (result.spent.unit, result.spent.neighbours) == ("example", "add-or-remove-one")
    assert np.isfinite(result.loss_not_private)
    assert not result.stopped


def test_an_empty_fit_has_no_loss(trainer, data, monkeypatch):
    monkeypatch.setattr(private_fit, "poisson_sample", lambda *_: np.arange(0))
    result = fit(trainer, data)
    assert np.isnan(result.loss_not_private)
    assert np.isnan(result.metric_not_private)


def test_it_learns(trainer, data):
    x, y = np.repeat(data[0], 20, 0), np.repeat(data[1], 20)
    before = trainer.evaluate(*data).metric
    privacy = PrivateTraining(max_grad_norm=1.0, noise_multiplier=1.0, sample_rate=0.2)
    trainer.fit_private(x, y, privacy=privacy, epochs=8, learning_rate=0.3)
    assert trainer.evaluate(*data).metric > before + 0.5


def test_a_stopped_fit_goes_on_and_charges_each_step_once(trainer, bundle, data, tmp_path):
    options = {"epochs": 2, "checkpoint_dir": tmp_path}
    first = fit(trainer, data, **options, progress=lambda step, *_: step < 4)
    assert (first.steps, first.spent.steps, first.stopped) == (4, 4, True)
    stopped_at = flat(trainer.adapter)
    again = Trainer(bundle)
    seen = []
    last = fit(again, data, **options, progress=lambda step, *_: seen.append(step))
    assert (last.resumed_from_step, last.steps, last.spent.steps) == (4, 10, 10)
    assert seen == [5, 6, 7, 8, 9]
    assert not np.array_equal(flat(again.adapter), stopped_at)
    assert not list(tmp_path.iterdir())


def test_a_crash_charges_the_steps_that_were_lost(trainer, bundle, data, tmp_path):
    """Whoever saw the device before the crash saw them; they are taken again with other noise."""
    options = {"epochs": 4, "checkpoint_dir": tmp_path, "checkpoint_every": 5}

    class CrashError(Exception):
        pass

    adapters = {}

    def crash(step, *_):
        adapters[step] = flat(trainer.adapter)
        if step == 8:
            raise CrashError

    with pytest.raises(CrashError):
        fit(trainer, data, **options, progress=crash)
    again = Trainer(bundle)
    later = {}
    progress = lambda step, *_: later.update({step: flat(again.adapter)})  # noqa: E731
    result = fit(again, data, **options, progress=progress)
    assert (result.resumed_from_step, result.steps, result.spent.steps) == (5, 20, 25)
    moves = [adapters[6] - adapters[5], later[6] - adapters[5]]
    assert stats.pearsonr(*moves).pvalue > 1e-6


def test_the_checkpoint_holds_neither_samples_nor_noise(trainer, data, tmp_path):
    fit(trainer, data, epochs=2, checkpoint_dir=tmp_path, progress=lambda step, *_: step < 4)
    import json

    (path,) = tmp_path.glob("*.json")
    position = json.loads(path.read_text())["notes"]["position"]
    assert set(position) == {
        *("fit", "energy_j", "step", "charged", "epoch"),
        *("loss_sum", "metric_sum", "weight_sum"),
    }


def test_divergence_brings_the_adapter_back(trainer, data):
    before = flat(trainer.adapter)
    with pytest.raises(NonFiniteLossError, match="learning_rate"):
        fit(trainer, data, replace(MECHANISM, max_grad_norm=1e4), epochs=4, learning_rate=1e38)
    assert np.array_equal(flat(trainer.adapter), before)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"sample_rate": 1.1}, "sample_rate"),
        ({"expected_batch_size": 0.0}, "expected_batch_size"),
    ],
)
def test_values_outside_their_bounds_are_refused(wrong, name):
    with pytest.raises(DataError, match=name):
        replace(MECHANISM, **wrong)


def test_a_bundle_without_the_graph_is_refused(mlp_bundle):
    bundle = Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)
    with pytest.raises(DataError, match=r"PrivacyConfig\(\)"):
        Trainer(bundle).fit_private(
            mlp_bundle.x, mlp_bundle.y, privacy=MECHANISM, epochs=1, learning_rate=0.1
        )
