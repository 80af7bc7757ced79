"""A client that replays, distils and refuses what is worse on its own held-out examples."""

import types
from pathlib import Path

import numpy as np
import pytest

from rootlet import DeviceClient, DeviceConditions, TrainConfig
from rootlet.continual import Continual, ContinualConfig
from rootlet.data import ArrayData
from rootlet.errors import ConfigError
from rootlet.learner import Learner
from rootlet.vault import EXAMPLES, KeyFile, Vault
from rootlet_runtime import Bundle
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import AdapterError
from rootlet_runtime.quality_gate import QualityGate
from rootlet_runtime.replay import ReplayBuffer, ReplaySettings

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)
REPLAY = ReplaySettings(quota_bytes=20_000, storage="uint8")


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as loaded:
        yield loaded


@pytest.fixture
def open_client(bundle, tmp_path):
    clients = []

    def open_(data=None, **continual):
        train = TrainConfig(
            epochs=10,
            batch_size=16,
            learning_rate=0.05,
            continual=ContinualConfig(**continual),
        )
        clients.append(
            DeviceClient(
                bundle,
                tmp_path / "state",
                train=train,
                conditions=lambda: GOOD,
                data=data,
                on_event=events.append,
            )
        )
        return clients[-1]

    events = open_.events = []
    yield open_
    for client in clients:
        client.close()


def turned(mlp_bundle, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    return mlp_bundle.x[rows], mlp_bundle.y[rows]


def test_an_update_that_is_worse_is_refused_and_said_to_be(mlp_bundle, open_client) -> None:
    """One class of ten is labelled wrong: too little for the guard that watches the training."""
    x, y = turned(mlp_bundle, slice(0, 240))
    held_out = turned(mlp_bundle, slice(240, 400))
    client = open_client(ArrayData((x, y), held_out))
    good = client.train_locally()
    assert good.verdict is not None
    assert good.verdict.accepted
    assert client.status.refused == ""
    before = client.predict(held_out[0])
    client.close()

    strict = QualityGate(alpha=0.5)
    client = open_client(ArrayData((x, np.where(y == 3, 8, y)), held_out), gate=strict)
    np.testing.assert_array_equal(client.predict(held_out[0]), before)
    bad = client.train_locally()
    assert bad.rolled_back == 0
    assert bad.verdict is not None
    assert not bad.verdict.accepted
    assert bad.verdict.after > bad.verdict.before
    assert client.status.refused == bad.verdict.reason
    np.testing.assert_array_equal(client.predict(held_out[0]), before)
    kept = [event for event in open_client.events if event.kind == "kept"]
    assert len(kept) == 1
    assert bad.verdict.reason in kept[0].detail


def test_a_trained_adapter_of_a_round_must_pass_too(mlp_bundle, bundle, tmp_path: Path) -> None:
    """What a server sent, and this device trained on, is not used where it is worse here."""
    held_out = turned(mlp_bundle, slice(240, 400))
    continual = Continual(ContinualConfig(), bundle.manifest, tmp_path / "replay", lambda: held_out)
    learner = Learner(bundle, tmp_path / "adapter", 1, continual)
    good = learner.trainer.adapter
    before = learner.predict(held_out[0])
    learner.trainer.load_adapter({name: -value for name, value in good.items()})
    verdict = learner.finish()
    assert verdict is not None
    assert not verdict.accepted
    np.testing.assert_array_equal(learner.predict(held_out[0]), before)
    for name, value in learner.trainer.adapter.items():
        np.testing.assert_array_equal(value, good[name])


def test_without_a_gate_the_same_update_passes(mlp_bundle, open_client) -> None:
    x, y = turned(mlp_bundle, slice(0, 240))
    held_out = turned(mlp_bundle, slice(240, 400))
    client = open_client(ArrayData((x, y), held_out), gate=None)
    client.train_locally()
    client.close()
    client = open_client(ArrayData((x, np.where(y == 3, 8, y)), held_out), gate=None)
    before = client.predict(held_out[0])
    assert client.train_locally().verdict is None
    assert np.abs(client.predict(held_out[0]) - before).mean() > 0.003


def test_what_was_learnt_is_replayed_after_a_restart_and_counted_once(
    mlp_bundle, bundle, open_client, tmp_path: Path
) -> None:
    first = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(first, replay=REPLAY)
    assert client.train_locally().replay_uses == ()
    assert client.status.remembered == 60
    client.train_locally()  # the same examples: offered once
    client.close()

    more = ArrayData(turned(mlp_bundle, slice(30, 90)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(more, replay=REPLAY)
    assert client.status.remembered == 60
    result = client.train_locally()
    assert len(result.replay_uses) == 60
    assert client.status.remembered == 90  # thirty of the sixty were there before
    client.close()

    buffer = ReplayBuffer(bundle.manifest, REPLAY)
    cipher = Vault(KeyFile(tmp_path / "state" / "keys.json")).cipher(EXAMPLES)
    assert buffer.restore(ArrayFiles(tmp_path / "state" / "replay", cipher), "replay")
    assert buffer.seen == 90
    assert (buffer.uses[:60] >= 10 + np.array(result.replay_uses)).all()
    assert (buffer.uses[60:] == 10).all()


def test_erase_takes_the_replayed_examples_too(mlp_bundle, open_client, tmp_path: Path) -> None:
    data = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(data, replay=REPLAY)
    client.train_locally()
    assert list((tmp_path / "state" / "replay").iterdir())
    client.erase()
    assert client.status.remembered == 0
    assert not list((tmp_path / "state" / "replay").iterdir())


def test_what_is_erased_during_a_training_does_not_come_back(mlp_bundle, open_client) -> None:
    data = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(data, replay=REPLAY)
    client.train_locally()
    assert client.status.remembered == 60

    def erase(report):
        if report.step == 3:
            client.erase()

    client.train_locally(progress=erase)
    assert client.status.remembered == 0


def test_a_damaged_buffer_is_left_behind(mlp_bundle, open_client, tmp_path: Path) -> None:
    data = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(data, replay=REPLAY)
    client.train_locally()
    client.close()
    for path in (tmp_path / "state" / "replay").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    client = open_client(data, replay=REPLAY)
    assert client.status.remembered == 0
    client.train_locally()
    assert client.status.remembered == 60


def test_what_cannot_be_is_refused_at_once(mlp_bundle, open_client) -> None:
    data = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    with pytest.raises(ConfigError, match=r"CompileConfig\(distillation=True\)"):
        open_client(data, distillation=0.5)
    with pytest.raises(ConfigError, match="holds no example"):
        open_client(data, replay=ReplaySettings(quota_bytes=100))
    with pytest.raises(ConfigError, match="replay_fraction is 1"):
        ContinualConfig(replay_fraction=1)
    with pytest.raises(ConfigError, match="distillation is -1"):
        ContinualConfig(distillation=-1)
    assert ContinualConfig().gate == QualityGate()


def test_adapters_are_kept_and_used_by_task(mlp_bundle, open_client) -> None:
    x, y = turned(mlp_bundle, slice(0, 60))
    client = open_client(ArrayData((x, y), turned(mlp_bundle, slice(240, 400))), gate=None)
    start = client.predict(x)
    client.keep_task("factory")
    client.train_locally()
    home = client.predict(x)
    assert np.abs(home - start).max() > 0.01
    client.keep_task("home")
    assert client.tasks == ["factory", "home"]
    np.testing.assert_array_equal(client.predict(x, task="factory"), start)
    np.testing.assert_array_equal(client.predict(x), home)  # the finished one is as it was
    # A batch of one goes through another kernel: float32 to a few units in the last place.
    np.testing.assert_allclose(client.predict(x[0], task="factory"), start[0], rtol=1e-4)
    client.use_task("factory")
    np.testing.assert_array_equal(client.predict(x), start)
    client.close()

    client = open_client(ArrayData((x, y), turned(mlp_bundle, slice(240, 400))), gate=None)
    np.testing.assert_array_equal(client.predict(x), start)  # it outlives the process
    np.testing.assert_array_equal(client.predict(x, task="home"), home)
    client.forget_task("home")
    with pytest.raises(AdapterError, match="task 'home': has no adapter"):
        client.use_task("home")
    with pytest.raises(AdapterError, match="does not match"):
        client.keep_task("../home")


def test_a_drift_is_told_once_and_shown_until_another_adapter_is_in_use(
    mlp_bundle, open_client
) -> None:
    """Upright digits are what the base knows; then it sees noise, and is less sure."""
    sure = np.rot90(mlp_bundle.x.reshape(-1, 8, 8), k=-1, axes=(1, 2)).reshape(-1, 64)
    unsure = np.random.default_rng(0).random((400, 64), np.float32)
    data = ArrayData(turned(mlp_bundle, slice(0, 60)), turned(mlp_bundle, slice(240, 400)))
    client = open_client(data, drift=True, gate=None)
    client.predict(sure)
    assert not client.status.drifted
    client.predict(unsure)
    client.predict(unsure)
    assert client.status.drifted
    client.train_locally()
    assert not client.status.drifted
    client.close()
    assert [event.kind for event in open_client.events].count("drift") == 1
    quiet = open_client(data, gate=None)
    quiet.predict(sure)
    quiet.predict(unsure)
    assert not quiet.status.drifted


def test_what_a_bundle_cannot_do_is_named(open_client, mlp_bundle) -> None:
    data = ArrayData(turned(mlp_bundle, slice(0, 20)), None)
    with pytest.raises(ConfigError, match=r"no grads graph: compile it with CompileConfig"):
        open_client(data, ewc=1.0)
    with pytest.raises(ConfigError, match="ewc is -1"):
        ContinualConfig(ewc=-1.0)
    regression = types.SimpleNamespace(name="r", distils=False, graphs={}, task="regression")
    with pytest.raises(ConfigError, match="LossDrift"):
        ContinualConfig(drift=True).check(regression)
