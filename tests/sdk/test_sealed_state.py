"""A client's whole state directory: what of it can be read, and what is taken over."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rootlet import DeviceClient, DeviceConditions, TrainConfig
from rootlet.continual import ContinualConfig
from rootlet.errors import ConfigError, KeystoreError, StateError, StoreError
from rootlet.fleet.mailbox import Mailbox, Stage
from rootlet.secret_keys import MAGIC
from rootlet.vault import cipher_of, open_vault
from rootlet_runtime import Bundle
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.quality_gate import QualityGate
from rootlet_runtime.replay import ReplaySettings
from rootlet_runtime.trainer import Trainer

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)
REPLAY = ReplaySettings(quota_bytes=20_000, storage="exact")
SETTINGS = {"epochs": 4, "batch_size": 8, "learning_rate": 0.05}


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as loaded:
        yield loaded


@pytest.fixture
def open_client(bundle, tmp_path):
    clients = []

    def open_(*, replay=REPLAY, **options):
        train = TrainConfig(
            **SETTINGS, continual=ContinualConfig(replay=replay, gate=QualityGate(alpha=0.5))
        )
        options = {"state_dir": tmp_path / "state", "conditions": lambda: GOOD} | options
        clients.append(DeviceClient(bundle, train=train, **options))
        return clients[-1]

    yield open_
    for client in clients:
        client.close()


def use(client, mlp_bundle, examples=40):
    """Everything that writes: examples, adapters, adapters by task, the replay buffer."""
    for x, y in zip(mlp_bundle.x[:examples], mlp_bundle.y[:examples], strict=True):
        client.observe(x, y)
    client.train_locally()
    client.keep_task("home")
    client.train_locally(lambda progress: progress.step < 6)  # left unfinished
    client.close()


def contents(state):
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file()
    }


def finished(client, x):
    return client.predict(x), client.predict(x, task="home")


def test_no_example_and_no_adapter_can_be_read_in_the_directory(open_client, mlp_bundle, tmp_path):
    found = {}
    for name, keystore in (("plain", None), ("sealed", "file")):
        state = tmp_path / name
        client = open_client(state_dir=state, keystore=keystore)
        use(client, mlp_bundle)
        found[name] = b"".join(contents(state).values())
    x = mlp_bundle.x[3]
    parts = (x.tobytes(), x.tobytes()[64:128], b"adapter/", b"lora_B", b"fingerprint")
    assert [part in found["plain"] for part in parts] == [True] * 5
    assert [part in found["sealed"] for part in parts] == [False] * 5


def test_every_file_is_sealed_but_those_that_the_documentation_names(
    open_client, mlp_bundle, tmp_path
):
    use(open_client(), mlp_bundle)
    plain = {
        name
        for name, content in contents(tmp_path / "state").items()
        if not content.startswith((MAGIC, b"rootlet sealed segment 1\n"))
    }
    assert plain == {"lock", "accepted.json", "energy.json", "vault.json", "vault.key"}


def test_everything_is_there_after_a_restart(open_client, mlp_bundle):
    client = open_client()
    use(client, mlp_bundle)
    outputs, remembered = finished(client, mlp_bundle.x[:5]), client.status.remembered
    assert remembered > 0
    client = open_client()
    assert (client.status.examples, client.status.remembered) == (40, remembered)
    assert client.tasks == ["home"]
    for now, before in zip(finished(client, mlp_bundle.x[:5]), outputs, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_directory_from_before_is_taken_over_whole(open_client, mlp_bundle, tmp_path):
    client = open_client(keystore=None)
    use(client, mlp_bundle)
    outputs, remembered = finished(client, mlp_bundle.x[:5]), client.status.remembered
    before = contents(tmp_path / "state")
    assert any(name.endswith("/fit.json") for name in before)
    message = tmp_path / "state" / "mailbox" / "message"
    message.parent.mkdir(exist_ok=True)
    stage = Stage.PULLED.value
    message.write_bytes(b"".join(len(blob).to_bytes(8) + blob for blob in (stage, b"", b"")))

    client = open_client()
    assert (client.status.examples, client.status.remembered) == (40, remembered)
    for now, then in zip(finished(client, mlp_bundle.x[:5]), outputs, strict=True):
        np.testing.assert_array_equal(now, then)
    client.close()
    after = contents(tmp_path / "state")
    raw = b"".join(after.values())
    assert mlp_bundle.x[3].tobytes() not in raw
    assert b"lora_B" not in raw
    assert any(name.endswith("/fit.json") for name in after)
    cipher = cipher_of(open_vault(tmp_path / "state", "file"), "learnt", "mailbox")
    assert cipher.open("message", message.read_bytes()).endswith(bytes(16))


def test_a_plain_adapter_is_refused_once_the_directory_is_sealed(
    open_client, bundle, mlp_bundle, tmp_path
):
    client = open_client()
    use(client, mlp_bundle)
    start = bundle.initial_adapter()
    planted = Trainer(bundle)
    planted.load_adapter({name: 9 + value for name, value in start.items()})
    (folder,) = (tmp_path / "state").glob("adapter-*")
    planted.save(folder)
    client = open_client()
    fresh = Trainer(bundle)
    x = mlp_bundle.x[:5]
    np.testing.assert_array_equal(client.predict(x), fresh.predict(x))  # neither planted nor kept


def test_files_that_changed_places_are_refused(open_client, mlp_bundle, tmp_path):
    client = open_client()
    use(client, mlp_bundle)
    client = open_client()
    client.keep_task("work")
    client.train_locally()
    client.keep_task("home")
    (folder,) = (tmp_path / "state").glob("adapter-*/tasks")
    (folder / "task-work.arrays").replace(folder / "task-home.arrays")
    with pytest.raises(CheckpointError, match="task-home was changed, renamed or moved"):
        client.predict(mlp_bundle.x[:5], task="home")


def test_erasing_takes_the_examples_and_leaves_what_was_learnt(open_client, mlp_bundle, tmp_path):
    client, state = open_client(), tmp_path / "state"
    use(client, mlp_bundle)
    outputs = finished(client, mlp_bundle.x[:5])
    shutil.copytree(state, tmp_path / "copied")
    client = open_client()
    client.erase()
    assert (client.status.examples, client.status.remembered) == (0, 0)
    for now, before in zip(finished(client, mlp_bundle.x[:5]), outputs, strict=True):
        np.testing.assert_array_equal(now, before)
    client.close()
    assert not list((state / "replay").glob("*"))
    for name in ("examples", "replay"):  # the files of before, under the key of now
        shutil.copytree(tmp_path / "copied" / name, state / name, dirs_exist_ok=True)
    client = open_client()
    assert (client.status.examples, client.status.remembered) == (0, 0)


def test_the_replay_buffer_stays_within_its_quota(open_client, mlp_bundle, tmp_path):
    settings = ReplaySettings(quota_bytes=6_000, storage="exact")
    client = open_client(replay=settings)
    use(client, mlp_bundle)
    size = (tmp_path / "state" / "replay" / "replay.arrays").stat().st_size
    assert 5_000 < size + 4096 <= 6_000 + 4096
    assert size <= settings.quota_bytes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keystore": None}, StateError, "is sealed: give the keystore"),
        ({"keystore": "disk"}, ConfigError, "keystore is 'disk'"),
        ({"retention_days": 3}, ConfigError, "the replay buffer keeps examples of any age"),
        ({"quota_bytes": 5}, ConfigError, "quota_bytes is 5"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_directory_stays_free(
    open_client, mlp_bundle, options, error, message
):
    use(open_client(), mlp_bundle)
    with pytest.raises(error, match=message):
        open_client(**options)
    assert open_client().status.examples == 40


def test_a_lost_key_is_said_at_once_and_nothing_is_overwritten(open_client, mlp_bundle, tmp_path):
    use(open_client(), mlp_bundle)
    key = tmp_path / "state" / "vault.key"
    key.replace(tmp_path / "kept.key")
    before = contents(tmp_path / "state")
    with pytest.raises(KeystoreError, match=r"its key is not in the file key store: restore"):
        open_client()
    assert {**contents(tmp_path / "state"), "lock": b""} == {**before, "lock": b""}
    (tmp_path / "kept.key").replace(key)
    assert open_client().status.examples == 40


def test_a_tampered_store_stops_the_client_before_it_learns_from_it(
    open_client, mlp_bundle, tmp_path
):
    use(open_client(), mlp_bundle)
    segment = sorted((tmp_path / "state" / "examples").glob("*.sealed"))[-1]
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    with pytest.raises(StoreError, match="is not as it was written"):
        open_client()


def test_a_sealed_mailbox_is_read_with_its_key_only(tmp_path: Path):
    vault = open_vault(tmp_path, "file")
    cipher = cipher_of(vault, "learnt", "mailbox")
    (tmp_path / "mailbox").mkdir()
    (tmp_path / "mailbox" / "message").write_bytes(b"plain")
    assert Mailbox(tmp_path / "mailbox", cipher).stage is Stage.EMPTY
