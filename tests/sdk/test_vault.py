"""What a device keeps, encrypted: nothing readable on the disk, and nothing exchanged unnoticed."""

import itertools
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import keyring
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyring.backend import KeyringBackend

from rootlet import DeviceClient, ParticipationPolicy
from rootlet.errors import ConfigError, StoreError
from rootlet.segment import RecordFormat
from rootlet.store import ExampleStore
from rootlet.vault import EXAMPLES, LEARNT, KeyFile, Keystore, Vault
from rootlet_runtime import Bundle
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.manifest import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))
Y = TensorSpec(name="y", dtype="int64", shape=(None,))
ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)


def opened(folder, source=None, **options):
    vault = Vault(source or KeyFile(folder / "keys.json"))
    return ExampleStore(
        folder / "examples", X, Y, cipher=vault.cipher(EXAMPLES), sync_interval_s=0.0, **options
    )


def filled(folder, count, source=None, **options):
    """A closed store of so many examples."""
    store = opened(folder, source, **options)
    for number in range(count):
        store.observe(np.full(3, number, np.float32), np.int64(number % 7))
    store.close()
    return sorted((folder / "examples").glob("*.segment"))


def numbers(store):
    both = np.concatenate([store.train()[0][:, 0], store.holdout()[0][:, 0]])
    return sorted(both.astype(int).tolist())


def records_of(path):
    """A segment's header and its sealed records."""
    form = RecordFormat(X, Y, Vault(KeyFile(path)).cipher(EXAMPLES))
    raw, size = path.read_bytes(), form.record_bytes
    body = raw[form.header_bytes :]
    return raw[: form.header_bytes], [body[i : i + size] for i in range(0, len(body), size)]


def test_examples_come_back_and_are_not_on_the_disk(tmp_path):
    (path,) = filled(tmp_path, 20)
    store = opened(tmp_path)
    assert numbers(store) == list(range(20))
    assert store.notes == ()
    store.close()
    raw = path.read_bytes()
    for number in range(1, 20):
        assert np.full(3, number, np.float32).tobytes() not in raw
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_records_that_were_changed_or_moved_are_left_out(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    (path,) = filled(folder, 8)
    header, records = records_of(path)
    assert len(records) == 8
    how = data.draw(st.sampled_from(["flip", "swap", "repeat"]))
    first, second = data.draw(st.sampled_from(list(itertools.combinations(range(7), 2))))
    bad = {first, second}
    if how == "flip":
        at = data.draw(st.integers(0, len(records[first]) - 1))
        changed = bytearray(records[first])
        changed[at] ^= 1
        records[first], bad = bytes(changed), {first}
    elif how == "swap":
        records[first], records[second] = records[second], records[first]
    else:
        records[second], bad = records[first], {second}
    path.write_bytes(header + b"".join(records))
    store = opened(folder)
    assert numbers(store) == [n for n in range(8) if n not in bad]
    assert any("damaged examples dropped" in note for note in store.notes)
    store.close()


def test_records_of_another_segment_do_not_open(tmp_path):
    first, second = filled(tmp_path, 16, capacity=64)[:2]
    header, _ = records_of(first)
    _, others = records_of(second)
    first.write_bytes(header + b"".join(others))
    store = opened(tmp_path, capacity=64)
    assert numbers(store) == list(range(8, 16))
    store.close()


def test_an_end_that_was_cut_off_is_noticed(tmp_path):
    (path,) = filled(tmp_path, 8)
    header, records = records_of(path)
    path.write_bytes(header + b"".join(records[:5]))
    store = opened(tmp_path)
    assert store.notes == (
        "3 examples that were kept are gone from the end: the files were cut or replaced",
    )
    store.observe(np.full(3, 9, np.float32), np.int64(2))
    store.close()
    again = opened(tmp_path)
    assert numbers(again) == [0, 1, 2, 3, 4, 9]
    assert again.notes == ()
    again.close()


def test_another_key_opens_nothing_and_says_so(tmp_path):
    filled(tmp_path, 4)
    (tmp_path / "keys.json").unlink()
    store = opened(tmp_path)
    assert numbers(store) == []
    assert any("sealed with another key" in note for note in store.notes)
    store.close()


def test_erasing_leaves_nothing_that_any_key_still_opens(tmp_path):
    (path,) = filled(tmp_path, 10)
    kept = tmp_path / "a copy"
    shutil.copytree(tmp_path / "examples", kept)
    store = opened(tmp_path)
    store.erase()
    store.observe(np.full(3, 5, np.float32), np.int64(5))
    store.flush()
    assert numbers(store) == [5]
    store.close()
    assert not path.exists() or np.full(3, 3, np.float32).tobytes() not in path.read_bytes()
    shutil.rmtree(tmp_path / "examples")
    kept.rename(tmp_path / "examples")  # what a flash medium may still hold
    store = opened(tmp_path)
    assert numbers(store) == []
    store.close()


def test_examples_beyond_their_time_are_gone(tmp_path, monkeypatch):
    filled(tmp_path, 6)
    with pytest.raises(ConfigError, match="retention_days is 0"):
        opened(tmp_path, retention_days=0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3 * 86_400)
    store = opened(tmp_path, retention_days=2)
    store.observe(np.full(3, 6, np.float32), np.int64(6))
    assert numbers(store) == [6]
    store.close()


class MemoryKeyring(KeyringBackend):
    """A keyring backend of `keyring`'s own kind, whose entries live in this process."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.entries = {}

    def get_password(self, service, username):
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        self.entries[service, username] = password

    def delete_password(self, service, username):
        del self.entries[service, username]


@pytest.fixture
def keystore():
    before, backend = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def test_a_folder_that_is_put_back_in_an_older_state_is_noticed(tmp_path, keystore):
    source = Keystore("a device")
    filled(tmp_path, 4, source)
    shutil.copytree(tmp_path / "examples", tmp_path / "old")
    filled(tmp_path, 2, source)
    shutil.rmtree(tmp_path / "examples")
    (tmp_path / "old").rename(tmp_path / "examples")
    store = opened(tmp_path, source)
    assert any("put back in an older state" in note for note in store.notes)
    store.close()
    assert not (tmp_path / "keys.json").exists()
    assert {entry.partition("#")[2] for _, entry in keystore.entries} >= {"examples"}


def test_a_keystore_that_does_not_answer_is_told_with_the_remedy(keystore, monkeypatch):
    def locked(service, username):
        raise keyring.errors.KeyringLocked("locked")

    monkeypatch.setattr(keystore, "get_password", locked)
    with pytest.raises(StoreError, match=r"locked.*keystore=\"file\""):
        Keystore("a device")


def test_a_damaged_key_file_is_refused(tmp_path):
    (tmp_path / "keys.json").write_text("[]")
    with pytest.raises(StoreError, match="is damaged"):
        Vault(KeyFile(tmp_path / "keys.json")).key(LEARNT)


def test_what_is_sealed_is_bound_to_its_name_and_purpose(tmp_path):
    vault = Vault(KeyFile(tmp_path / "keys.json"))
    sealed = vault.cipher(LEARNT).seal("a", b"weights")
    assert vault.cipher(LEARNT).open("a", sealed) == b"weights"
    for cipher, name in ((vault.cipher(LEARNT), "b"), (vault.cipher(EXAMPLES), "a")):
        with pytest.raises(CheckpointError, match="does not open"):
            cipher.open(name, sealed)


@pytest.mark.parametrize("choice", ["file", "keyring"])
def test_a_device_keeps_nothing_readable_and_goes_on(mlp_bundle, tmp_path, keystore, choice):
    def client(bundle):
        return DeviceClient(bundle, tmp_path / "state", policy=ANY_TIME, keystore=choice)

    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        with client(bundle) as device:
            for x, y in zip(mlp_bundle.x[:40], mlp_bundle.y[:40], strict=True):
                device.observe(x, y)
            device.train_locally()
            learnt = device.predict(mlp_bundle.x[:4])
        with client(bundle) as device:
            assert device.status.examples == 40
            np.testing.assert_array_equal(device.predict(mlp_bundle.x[:4]), learnt)
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        raw = path.read_bytes()
        assert b"lora_B" not in raw
        assert all(x[:16].tobytes() not in raw for x in mlp_bundle.x[:40] if x[:16].any())


def test_twenty_kills_lose_no_durable_example_and_raise_no_alarm(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from rootlet.store import ExampleStore\n"
        "from rootlet.vault import EXAMPLES, KeyFile, Vault\n"
        "from rootlet_runtime.manifest import TensorSpec\n"
        "x = TensorSpec(name='x', dtype='float32', shape=(None, 3))\n"
        "y = TensorSpec(name='y', dtype='int64', shape=(None,))\n"
        "folder = Path(sys.argv[1])\n"
        "cipher = Vault(KeyFile(folder / 'keys.json')).cipher(EXAMPLES)\n"
        "store = ExampleStore(folder / 'examples', x, y, cipher=cipher, sync_interval_s=0.0)\n"
        "print('alarm', *store.notes, flush=True) if any('gone' in n or 'head' in n for n in"
        " store.notes) else None\n"
        "number = len(store)\n"
        "while True:\n"
        "    store.observe(np.full(3, number, np.float32), np.int64(number % 7))\n"
        "    number += 1\n"
        "    store.flush()\n"
        "    print(number, flush=True)\n"
    )
    rng, durable = np.random.default_rng(7), 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), *sys.path],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        with process:
            lines = [process.stdout.readline() for _ in range(int(rng.integers(1, 12)))]
            time.sleep(float(rng.uniform(0, 0.01)))
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        assert not [line for line in lines if line.startswith("alarm")]
        durable = max(int(line) for line in lines if line.endswith("\n"))
        store = opened(tmp_path)
        assert numbers(store) == list(range(len(store)))
        assert len(store) >= durable
        assert not [note for note in store.notes if "gone" in note or "head" in note]
        store.close()
