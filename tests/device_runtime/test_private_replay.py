"""Replay under differential privacy: one data set, one ledger, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.rdp import RdpAccountant

from rootlet_runtime import Bundle, PrivacySpent, PrivateTraining, Trainer, private_fit
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import DataError
from rootlet_runtime.privacy_ledger import MAX_MECHANISMS, PrivacyLedger
from rootlet_runtime.private_report import ADD_OR_REMOVE, ZERO_OUT
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings
from rootlet_runtime.schedule import CONSTANT
from rootlet_server.privacy import epsilon, epsilon_by_rdp

FEATURES, CLASSES = 12, 3
MECHANISM = PrivateTraining(max_grad_norm=0.5, noise_multiplier=1.0, sample_rate=0.2)
SETTINGS = ReplaySettings(quota_bytes=5600, selection="uniform", storage="exact")
DELTA = 1e-5


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, FEATURES)).astype(np.float32), rng.integers(CLASSES, size=n)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    import torch

    from rootlet_server.compiler import CompileConfig, PrivacyConfig, compile_bundle

    path = tmp_path_factory.mktemp("private") / "head.rootlet"
    torch.manual_seed(0)
    compile_bundle(
        torch.nn.Sequential(torch.nn.Linear(FEATURES, CLASSES)),
        calibration_x=drawn(32, 0)[0],
        config=CompileConfig(rule="head_only", max_batch=32, privacy=PrivacyConfig()),
        name="head",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


@pytest.fixture
def trainer(bundle: Bundle) -> Trainer:
    return Trainer(bundle)


@pytest.fixture
def buffer(bundle: Bundle) -> ReplayBuffer:
    return ReplayBuffer(bundle.manifest, SETTINGS)


def fit(trainer, buffer, data, **options):
    settings = {"epochs": 1, "learning_rate": 0.1, "schedule": CONSTANT, "privacy": MECHANISM}
    return trainer.fit_private(*data, replay=buffer, **(settings | options))


def remember(trainer, buffer, data, **options):
    trainer.remember(buffer, *data, np.random.default_rng(0), **options)


def test_samples_are_drawn_from_fresh_and_kept_examples_alike(trainer, buffer, monkeypatch):
    """A rate of one and next to no noise: the step is the clipped mean over both."""
    first, second = drawn(10, 1), drawn(14, 2)
    remember(trainer, buffer, first)
    asked = []
    sample = private_fit.poisson_sample
    monkeypatch.setattr(
        private_fit, "poisson_sample", lambda n, q: asked.append((n, q)) or sample(n, q)
    )
    sure = replace(MECHANISM, sample_rate=1.0, noise_multiplier=0.01)
    both = tuple(np.concatenate(parts) for parts in zip(second, first, strict=True))
    start = trainer.adapter
    fit(trainer, buffer, second, privacy=sure)
    found = trainer.adapter
    trainer.load_adapter(start)
    trainer.fit_private(*both, privacy=sure, epochs=1, learning_rate=0.1, schedule=CONSTANT)
    assert asked == [(24, 1.0), (24, 1.0)]
    # Two draws of noise apart: six standard deviations of their difference.
    apart = 6 * 2**0.5 * 0.1 * sure.noise_multiplier * sure.max_grad_norm / 24
    for name, value in trainer.adapter.items():
        assert np.abs(value - start[name]).max() > 3 * apart
        np.testing.assert_allclose(found[name], value, rtol=0, atol=apart)
    assert not buffer.uses.any()  # who was drawn is a secret


def test_every_fit_is_charged_to_the_buffer_and_they_compose(trainer, buffer, tmp_path: Path):
    spent = []
    for seed in range(3):
        data = drawn(20, seed)
        spent.append(fit(trainer, buffer, data, epochs=1 + seed).spent)
        remember(trainer, buffer, data)
    assert [each.steps for each in spent] == [5, 10, 15]
    assert {each.neighbours for each in spent} == {ZERO_OUT}
    assert buffer.spent == (replace(spent[0], steps=30),)
    assert epsilon(buffer.spent, DELTA) == pytest.approx(epsilon(spent, DELTA), rel=1e-3)
    assert epsilon(buffer.spent, DELTA) > epsilon(spent[2:], DELTA)  # the last fit alone is less

    files = ArrayFiles(tmp_path)
    buffer.save(files, "replay")
    again = ReplayBuffer(trainer.bundle.manifest, SETTINGS)
    assert again.restore(files, "replay")
    assert again.spent == buffer.spent
    buffer.clear()
    assert buffer.spent == again.spent  # what was spent is not undone


def test_zero_out_costs_what_dp_accounting_says_of_it(trainer, buffer):
    """REPLACE_SPECIAL is dp-accounting's name for it; by Renyi divergences, as by ours."""
    fit(trainer, buffer, drawn(20, 0), epochs=4)
    relation = privacy_accountant.NeighboringRelation.REPLACE_SPECIAL
    other = RdpAccountant(neighboring_relation=relation)
    gaussian = dp_event.GaussianDpEvent(MECHANISM.noise_multiplier)
    other.compose(dp_event.PoissonSampledDpEvent(MECHANISM.sample_rate, gaussian), 20)
    assert epsilon_by_rdp(buffer.spent, DELTA) == pytest.approx(other.get_epsilon(DELTA), rel=1e-9)


def test_which_examples_are_kept_does_not_depend_on_what_they_are(bundle: Bundle):
    """What zero-out needs: an example that is replaced leaves every other one where it was."""
    x, y = drawn(400, 3)
    other_x, other_y = x.copy(), y.copy()
    other_x[7], other_y[7] = 9.0, (y[7] + 1) % CLASSES
    kept = []
    for each in ((x, y), (other_x, other_y)):
        buffer = ReplayBuffer(bundle.manifest, SETTINGS)
        buffer.add(*each, np.random.default_rng(5))
        assert len(buffer) < 400
        kept.append(buffer.examples())
    differs = (kept[0][0] != kept[1][0]).any(axis=1)
    assert differs.sum() <= 1
    np.testing.assert_array_equal(kept[0][1][~differs], kept[1][1][~differs])


def test_a_fit_that_is_stopped_and_goes_on_is_charged_once(trainer, bundle, buffer, tmp_path):
    data, options = drawn(20, 1), {"epochs": 2, "checkpoint_dir": tmp_path / "fit"}
    first = fit(trainer, buffer, data, **options, progress=lambda step, *_: step < 4)
    assert (first.stopped, [each.steps for each in buffer.spent]) == (True, [4])
    files = ArrayFiles(tmp_path / "buffer")
    buffer.save(files, "replay")
    again = ReplayBuffer(bundle.manifest, SETTINGS)
    assert again.restore(files, "replay")
    last = fit(Trainer(bundle), again, data, **options)
    assert (last.resumed_from_step, [each.steps for each in again.spent]) == (4, [10])


def test_a_fit_that_raises_is_charged_too(trainer, buffer):
    class StoppedError(Exception):
        pass

    def stop(step, *_):
        if step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(trainer, buffer, drawn(20, 1), progress=stop)
    assert [each.steps for each in buffer.spent] == [3]


def test_what_was_spent_elsewhere_can_be_carried_in(trainer, buffer):
    data = drawn(20, 1)
    options = {"epochs": 1, "learning_rate": 0.1, "privacy": MECHANISM}
    alone = trainer.fit_private(*data, **options).spent
    remember(trainer, buffer, data, spent=[alone])
    later = fit(trainer, buffer, drawn(20, 2)).spent
    assert buffer.spent == (alone, later)
    assert (alone.neighbours, later.neighbours) == (ADD_OR_REMOVE, ZERO_OUT)
    assert epsilon(buffer.spent, DELTA) > epsilon([later], DELTA)


def test_what_cannot_be_accounted_for_is_refused(trainer, bundle, buffer):
    data = drawn(20, 1)
    balanced = ReplayBuffer(bundle.manifest, replace(SETTINGS, selection="class_balanced"))
    with pytest.raises(DataError, match="selection='uniform'"):
        fit(trainer, balanced, data)
    public = ReplayBuffer(bundle.manifest, SETTINGS)
    remember(trainer, public, data, uses=1)
    with pytest.raises(DataError, match="trained on without privacy"):
        fit(trainer, public, data)
    remember(trainer, buffer, data)
    with pytest.raises(DataError, match="x holds 20 examples that the replay buffer holds too"):
        fit(trainer, buffer, data)
    assert buffer.spent == ()
    fit(trainer, buffer, drawn(20, 2))
    before = trainer.adapter
    with pytest.raises(DataError, match="use fit_private, or another buffer"):
        trainer.fit(
            *data, epochs=1, batch_size=8, learning_rate=0.1, rng=np.random.default_rng(0),
            replay=Replay(buffer=buffer),
        )  # fmt: skip
    assert all((value == before[name]).all() for name, value in trainer.adapter.items())


def test_a_full_ledger_takes_no_other_fit_and_keeps_the_quota(bundle, tmp_path):
    ledger = PrivacyLedger()
    for number in range(MAX_MECHANISMS):
        ledger.check_room()
        ledger.charge(
            PrivacySpent(steps=1, sample_rate=0.1, noise_multiplier=1.0 + number, max_grad_norm=1.0)
        )
    with pytest.raises(DataError, match="16 different mechanisms"):
        ledger.check_room()
    assert PrivacyLedger.from_arrays(ledger.to_arrays()).spent == ledger.spent
    buffer = ReplayBuffer(bundle.manifest, SETTINGS)
    buffer.add(*drawn(40, 1), np.random.default_rng(0))
    for spent in ledger.spent:
        buffer.charge_private(spent)
    buffer.save(ArrayFiles(tmp_path), "replay")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size <= SETTINGS.quota_bytes


def test_a_private_fit_is_metered_and_stops_at_its_limit(trainer, tmp_path):
    x, y = drawn(40, 1)
    options = {"learning_rate": 0.1, "privacy": MECHANISM, "checkpoint_dir": tmp_path / "fit"}
    whole = trainer.fit_private(x, y, epochs=4, **options)
    assert whole.ended_by == "steps"
    assert whole.energy.joules > 0
    trainer.load_adapter(trainer.bundle.initial_adapter())
    limit = whole.energy.joules / 4
    part = trainer.fit_private(x, y, epochs=4, energy_limit_j=limit, **options)
    assert (part.ended_by, part.stopped) == ("energy", True)
    assert 1 <= part.spent.steps == part.steps < 20
