"""The operating system's key store, through keyring and a backend of its public API."""

import shutil

import keyring
import keyring.backend
import keyring.backends.fail
import keyring.backends.null
import keyring.errors
import numpy as np
import pytest

from rootlet import DeviceClient
from rootlet.anchor import Anchor
from rootlet.erasure import erase_examples, forget_ledger
from rootlet.errors import ConfigError, KeystoreError, LedgerError, StoreError
from rootlet.keystore import SystemKeys
from rootlet.ledger import Ledger
from rootlet.store import ExampleStore
from rootlet.vault import cipher_of, open_vault
from rootlet_runtime import Bundle
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.manifest import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))
Y = TensorSpec(name="y", dtype="int64", shape=(None,))


class MemoryKeyring(keyring.backend.KeyringBackend):
    """Keeps what it is given, and may be locked."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.kept, self.locked, self.writes = {}, False, 0

    def get_password(self, service, username):
        self._check()
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        self._check()
        self.writes += 1
        self.kept[service, username] = password

    def delete_password(self, service, username):
        self._check()
        if (service, username) not in self.kept:
            raise keyring.errors.PasswordDeleteError("not found")
        del self.kept[service, username]

    def _check(self):
        if self.locked:
            raise keyring.errors.KeyringLocked("the user said no")


@pytest.fixture
def backend():
    before, memory = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(memory)
    yield memory
    keyring.set_keyring(before)


def open_store(state, keystore="keyring", **options):
    state.mkdir(exist_ok=True)
    vault = open_vault(state, keystore)
    return ExampleStore(state / "examples", X, Y, vault=vault, sync_interval_s=0.0, **options)


def fill(store, numbers):
    for number in numbers:
        store.observe(np.full(3, number, np.float32), np.int64(0))
        store.flush()


def kept(store):
    return sorted(int(x) for part in (store.train(), store.holdout()) for x in part[0][:, 0])


def test_keys_lie_in_the_key_store_and_nowhere_else(tmp_path, backend):
    store = open_store(tmp_path)
    fill(store, range(5))
    store.close()
    assert not (tmp_path / "vault.key").exists()
    assert {service for service, _ in backend.kept} == {"rootlet"}
    assert kept(open_store(tmp_path)) == list(range(5))


def test_an_older_copy_of_the_whole_directory_is_refused(tmp_path, backend):
    state, old = tmp_path / "state", tmp_path / "old"
    store = open_store(state)
    fill(store, range(5))
    store.close()
    shutil.copytree(state, old)
    store = open_store(state)
    fill(store, [5])
    store.close()
    shutil.rmtree(state)
    shutil.copytree(old, state)
    with pytest.raises(StoreError, match=r"an older copy was put in its place.*erase_examples"):
        open_store(state)
    erase_examples(state, "keyring")
    store = open_store(state)
    assert kept(store) == []
    fill(store, [7])
    assert kept(store) == [7]
    store.close()


@pytest.mark.parametrize("removed", ["head", "*"])
def test_a_removed_head_is_refused(tmp_path, backend, removed):
    store = open_store(tmp_path)
    fill(store, range(5))
    store.close()
    for path in (tmp_path / "examples").glob(removed):
        path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        open_store(tmp_path)


def test_a_crash_before_the_anchor_is_no_alarm(tmp_path, backend):
    store = open_store(tmp_path)
    fill(store, range(3))
    before = dict(backend.kept)
    fill(store, [3])
    store.close()
    backend.kept = dict(before)  # the head was replaced, and the key store did not hear of it
    store = open_store(tmp_path)
    assert kept(store) == [0, 1, 2, 3]
    store.close()
    assert backend.kept != before  # now it has


def test_a_locked_key_store_says_so_on_opening_and_stops_no_observation(tmp_path, backend):
    store = open_store(tmp_path)
    fill(store, [0])
    backend.locked = True
    fill(store, [1])  # durable, though not anchored
    with pytest.raises(KeystoreError, match=r"MemoryKeyring\) cannot be used.*unlock it"):
        open_vault(tmp_path, "keyring")
    with pytest.raises(KeystoreError, match="the user said no"):
        store.erase()
    assert kept(store) == [0, 1]
    backend.locked = False
    fill(store, [2])
    store.erase()
    assert kept(store) == []
    store.close()


def test_a_key_that_the_key_store_lost_is_missed(tmp_path, backend):
    store = open_store(tmp_path)
    fill(store, [0])
    store.close()
    backend.kept.clear()
    with pytest.raises(KeystoreError, match="its key is not in the keyring key store"):
        open_store(tmp_path)


def test_a_key_file_moves_into_the_key_store(tmp_path, backend):
    store = open_store(tmp_path, "file")
    fill(store, range(3))
    store.close()
    store = open_store(tmp_path, "keyring")
    assert kept(store) == [0, 1, 2]
    store.close()
    assert not (tmp_path / "vault.key").exists()
    with pytest.raises(ConfigError, match=r'in the keyring key store: give keystore="keyring"'):
        open_store(tmp_path, "file")


def test_a_key_store_that_keeps_nothing_is_refused(tmp_path, backend):
    keyring.set_keyring(keyring.backends.null.Keyring())
    with pytest.raises(KeystoreError, match="does not give back what it was given"):
        open_vault(tmp_path, "keyring")


def test_a_machine_without_a_key_store_says_so(tmp_path, backend):
    keyring.set_keyring(keyring.backends.fail.Keyring())
    with pytest.raises(KeystoreError, match=r'cannot be used.*give keystore="file"'):
        open_vault(tmp_path, "keyring")


def test_an_older_ledger_is_refused_until_its_anchor_is_forgotten(tmp_path, backend):
    state, old = tmp_path / "state", tmp_path / "old"
    state.mkdir()

    def anchor() -> Anchor:
        return open_vault(state, "keyring").anchor("ledger")

    ledger = Ledger(state, anchor())
    ledger.append("update", bytes=1)
    shutil.copytree(state, old)
    ledger.append("update", bytes=2)
    Ledger(state, anchor())
    for name in ("ledger.jsonl", "ledger.head"):
        shutil.copy(old / name, state / name)
    with pytest.raises(LedgerError, match="line 2 is not the one that the known head names"):
        Ledger(state, anchor())
    forget_ledger(state, "keyring")
    assert Ledger(state, anchor()).head.number == 1


def test_a_client_with_an_older_ledger_joins_nothing(tmp_path, backend, mlp_bundle):
    state = tmp_path / "state"
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        client = DeviceClient(bundle, state, keystore="keyring")
        ledger = Ledger(state, open_vault(state, "keyring").anchor("ledger"))
        ledger.append("update", bytes=1)
        older = {name: (state / name).read_bytes() for name in ("ledger.jsonl", "ledger.head")}
        ledger.append("update", bytes=2)
        for name, content in older.items():
            (state / name).write_bytes(content)
        with pytest.raises(LedgerError, match="The ledger was replaced"):
            client.join("127.0.0.1:1")
        client.close()


def test_a_ledger_written_just_before_a_crash_is_no_alarm(tmp_path, backend):
    vault = open_vault(tmp_path, "keyring")
    ledger = Ledger(tmp_path, vault.anchor("ledger"))
    ledger.append("update", bytes=1)
    before = dict(backend.kept)
    ledger.append("update", bytes=2)
    backend.kept = before
    assert Ledger(tmp_path, vault.anchor("ledger")).head.number == 2


def test_the_anchors_of_an_erased_store_mean_nothing(tmp_path, backend):
    store = open_store(tmp_path)
    fill(store, range(20))
    store.erase()
    fill(store, [1])
    store.close()
    assert kept(open_store(tmp_path)) == [1]


def test_entries_can_be_removed_twice(backend):
    keys = SystemKeys()
    keys.write("a/b", "secret")
    assert keys.read("a/b") == "secret"
    keys.remove("a/b")
    keys.remove("a/b")
    assert keys.read("a/b") is None


def test_erased_examples_cannot_be_opened_by_any_key_that_is_left(tmp_path, backend):
    vault = open_vault(tmp_path, "keyring")
    sealed = cipher_of(vault, "examples", "replay").seal("replay", b"raw")
    vault.erase_examples()
    with pytest.raises(CheckpointError, match="another key"):
        cipher_of(open_vault(tmp_path, "keyring"), "examples", "replay").open("replay", sealed)
