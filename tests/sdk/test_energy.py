"""The energy budget: its bounds, its account over restarts and days, and a client that keeps it."""

import json
from datetime import datetime

import pytest

from rootlet import (
    DeviceClient,
    DeviceConditions,
    EnergyBudget,
    ParticipationPolicy,
    TrainConfig,
    energy_account,
)
from rootlet.data import ArrayData
from rootlet.energy import EnergySpent
from rootlet.energy_account import Allowance, EnergyAccount
from rootlet.errors import ConfigError, NotNowError, StateError
from rootlet.state import StateDirectory
from rootlet_runtime import Bundle, count_work
from rootlet_runtime.energy import Energy, Work

GOOD = DeviceConditions(charging=True, battery_level=0.9, unmetered=True, idle=True)


class Clock:
    def __init__(self, day=23):
        self.day = day

    def __call__(self):
        return datetime(2026, 11, self.day, 12, 0)


@pytest.fixture
def state(tmp_path):
    with StateDirectory(tmp_path / "state") as directory:
        yield directory


def energy(joules, method="estimated"):
    return Energy(joules=joules, method=method, source="operations", work=Work())


@pytest.mark.parametrize("name", ["joules_per_round", "joules_per_day"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_budget_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is"):
        EnergyBudget(**{name: value})


def test_the_account_outlives_the_process_and_ends_with_the_day(state):
    clock = Clock()
    account = EnergyAccount(state, now=clock)
    account.spend(2.0, "measured")
    account.spend(1.0, "measured")
    account.flush()
    again = EnergyAccount(state, now=clock)
    assert again.today() == EnergySpent(joules=3.0, method="measured")
    again.spend(0.5, "estimated")
    assert again.today() == EnergySpent(joules=3.5, method="estimated")
    clock.day += 1
    assert again.today() == EnergySpent()
    again.spend(1.0, "measured")
    again.flush()
    assert EnergyAccount(state, now=clock).today().joules == 1.0


def test_the_disk_is_written_at_most_every_five_seconds(state, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(energy_account.time, "monotonic", lambda: now[0])
    account, path = EnergyAccount(state, now=Clock()), state.path / "energy.json"

    def on_disk():
        return json.loads(path.read_text())["joules"]

    account.spend(1.0, "measured")
    assert on_disk() == 1.0
    account.spend(1.0, "measured")
    assert on_disk() == 1.0
    now[0] += 5
    account.spend(1.0, "measured")
    assert on_disk() == 3.0


@pytest.mark.parametrize("text", ["[]", '{"day": "2026-11-23", "joules": -1}', '{"joules": "x"}'])
def test_a_damaged_account_is_named(state, text):
    (state.path / "energy.json").write_text(text)
    with pytest.raises(StateError, match=r"energy\.json is damaged"):
        EnergyAccount(state, now=Clock()).today()


def test_an_allowance_charges_what_is_new(state):
    account = EnergyAccount(state, now=Clock())
    allowance = Allowance(account=account)
    for _ in range(2):
        allowance.begin()
        allowance.charge(energy(1.0))
        allowance.charge(energy(3.0))
        allowance.charge(energy(2.0))  # a meter failed, and the estimate is lower
        allowance.charge(energy(3.5), final=True)
    assert account.today().joules == pytest.approx(7.0)
    assert json.loads((state.path / "energy.json").read_text())["joules"] == pytest.approx(7.0)


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as loaded:
        yield loaded


def client(bundle, mlp_bundle, folder, events=None, **budget):
    made = DeviceClient(
        bundle,
        folder,
        policy=ParticipationPolicy(energy=EnergyBudget(**budget)),
        train=TrainConfig(epochs=2, batch_size=16, learning_rate=0.02),
        conditions=lambda: GOOD,
        recheck_s=0.01,
        on_event=None if events is None else events.append,
    )
    if made.status.examples == 0:
        for x, y in zip(mlp_bundle.x[:60], mlp_bundle.y[:60], strict=True):
            made.observe(x, y)
    return made


def test_a_day_that_is_used_up_stops_training_between_two_steps(bundle, mlp_bundle, tmp_path):
    cost = bundle.manifest.cost
    step_j = count_work(cost, train_examples=16, train_batches=1).estimated_j
    with client(bundle, mlp_bundle, tmp_path, joules_per_day=3.5 * step_j) as device:
        with pytest.raises(NotNowError, match="the day's energy is used up"):
            device.train_locally()
        spent = device.status.energy_today
        assert spent.method == "estimated"
        assert 3.5 * step_j <= spent.joules < 8 * step_j
    with (
        client(bundle, mlp_bundle, tmp_path, joules_per_day=3.5 * step_j) as again,
        pytest.raises(NotNowError, match="the day's energy is used up"),
    ):
        again.train_locally()
    with client(bundle, mlp_bundle, tmp_path) as free:
        assert free.train_locally().resumed_from_step > 0
        assert free.status.energy_today.joules > spent.joules


def test_a_training_beyond_its_own_budget_is_stopped_and_undone(bundle, mlp_bundle, tmp_path):
    step_j = count_work(bundle.manifest.cost, train_examples=16, train_batches=1).estimated_j
    with client(bundle, mlp_bundle, tmp_path, joules_per_round=3.5 * step_j) as device:
        before = device.predict(mlp_bundle.x[:5])
        result = device.train_locally()
        assert (result.ended_by, result.stopped) == ("energy", True)
        assert (device.predict(mlp_bundle.x[:5]) == before).all()


def test_what_the_gate_predicts_is_charged_to_the_day(bundle, mlp_bundle, tmp_path):
    """Forty held-out examples, one batch of them under each adapter, before and after."""
    data = ArrayData(
        (mlp_bundle.x[:60], mlp_bundle.y[:60]), (mlp_bundle.x[60:100], mlp_bundle.y[60:100])
    )
    with DeviceClient(bundle, tmp_path, data=data, conditions=lambda: GOOD) as device:
        result = device.train_locally()
        spent = device.status.energy_today.joules
    assert result.verdict is not None
    gate = count_work(bundle.manifest.cost, predict_examples=80, predict_batches=2)
    assert spent == pytest.approx(result.energy.joules + gate.estimated_j, rel=1e-6)


def test_an_app_is_told_that_training_went_back(bundle, mlp_bundle, tmp_path):
    events = []
    with client(bundle, mlp_bundle, tmp_path, events) as device:
        device._settings = device._settings.__class__(
            epochs=30, batch_size=16, learning_rate=1e4, decay="constant", warmup=0.0
        )
        try:
            result = device.train_locally()
        except Exception as error:
            pytest.fail(str(error))
    assert result.rolled_back > 0
    (told,) = [event for event in events if event.kind == "rolled back"]
    assert result.reason in told.detail
