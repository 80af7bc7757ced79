"""Where a device's keys lie, and what they seal."""

import hashlib
import hmac
import json
import os
import stat
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet import secret_keys
from rootlet.errors import ConfigError, KeystoreError, StateError
from rootlet.keystore import KeyFile
from rootlet.secret_keys import UnsealError, derived, seal, unseal
from rootlet.vault import cipher_of, open_vault
from rootlet_runtime.errors import CheckpointError, MissingExtraError

SECRET = bytes(range(32))
UNUSABLE = ["", "{}", '{"examples": "AA==", "learnt": "AA=="}', "not json", "[]"]


def sealed_file(folder, keystore="file", name="adapter"):
    return cipher_of(open_vault(folder, keystore), "learnt", "place").seal(name, b"weights")


def test_keys_come_out_of_a_secret_as_rfc_5869_says():
    """By hand: HMAC-SHA-256 twice."""
    salt = b"salt"
    prk = hmac.new(salt, SECRET, hashlib.sha256).digest()
    expected = hmac.new(prk, b"rootlet 1 head\x01", hashlib.sha256).digest()
    assert derived(SECRET, "head", salt) == expected


def test_purposes_salts_and_secrets_give_different_keys():
    keys = {derived(s, p, n) for s in (SECRET, bytes(32)) for p in "ab" for n in (b"", b"1")}
    assert len(keys) == 8


@given(plain=st.binary(max_size=200), name=st.text(max_size=20), flip=st.integers(0))
def test_a_sealed_file_opens_whole_and_untouched_only(plain, name, flip):
    sealed = seal(SECRET, "adapter", name, plain)
    assert unseal(SECRET, "adapter", name, sealed) == plain
    assert len(sealed) == len(plain) + secret_keys.SEALED_BYTES
    assert len(plain) < 8 or plain not in sealed[len(secret_keys.MAGIC) :]
    changed = bytearray(sealed)
    changed[flip % len(sealed)] ^= 1 << flip % 8
    wrong = [
        (SECRET, "adapter", name, bytes(changed)),
        (SECRET, "adapter", name, sealed[:-1]),
        (SECRET, "adapter", name, sealed + b"\0"),
        (SECRET, "adapter", name + "2", sealed),
        (SECRET, "replay", name, sealed),
        (bytes(32), "adapter", name, sealed),
    ]
    for arguments in wrong:
        with pytest.raises(UnsealError):
            unseal(*arguments)


def test_a_file_sealed_twice_is_never_the_same():
    assert len({seal(SECRET, "a", "b", b"plain") for _ in range(100)}) == 100


def test_a_reopened_vault_opens_what_it_sealed(tmp_path):
    sealed = sealed_file(tmp_path)
    cipher = cipher_of(open_vault(tmp_path, "file"), "learnt", "place")
    assert cipher.open("adapter", sealed) == b"weights"
    with pytest.raises(CheckpointError, match="place: other was changed, renamed or moved"):
        cipher.open("other", sealed)
    with pytest.raises(CheckpointError, match="is not sealed"):
        cipher.open("adapter", b"weights, plain, and long enough to be a sealed file or more")


def test_without_a_keystore_nothing_is_sealed_until_something_was(tmp_path):
    assert open_vault(tmp_path, None) is None
    assert cipher_of(None, "learnt", "place").seal("name", b"plain") == b"plain"
    open_vault(tmp_path, "file")
    with pytest.raises(StateError, match="is sealed: give the keystore"):
        open_vault(tmp_path, None)


def test_an_unknown_keystore_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'keystore is \'tpm\': give "file", "keyring"'):
        open_vault(tmp_path, "tpm")


def test_a_missing_extra_gives_the_pip_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtraError, match=r'pip install "rootlet\[keystore\]"'):
        open_vault(tmp_path, "keyring")


def test_the_key_file_is_its_owner_s_only_and_refused_where_it_is_not(tmp_path):
    open_vault(tmp_path, "file")
    path = tmp_path / "vault.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(KeystoreError, match=r"mode 644.*chmod 600"):
        open_vault(tmp_path, "file")


def test_a_key_file_may_lie_elsewhere(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    open_vault(state, KeyFile(tmp_path / "device.key"))
    sealed = sealed_file(state, KeyFile(tmp_path / "device.key"))
    (state / "file").write_bytes(sealed)
    assert not (state / "vault.key").exists()
    with pytest.raises(KeystoreError, match="its key is not in the file key store: restore"):
        open_vault(state, "file")


def test_another_state_s_key_is_refused(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        open_vault(folder, "file")
    (folders[0] / "vault.key").replace(folders[1] / "vault.key")
    with pytest.raises(KeystoreError, match="give the key file of this state directory"):
        open_vault(folders[1], "file")


def test_a_key_that_is_not_the_sealing_one_is_refused(tmp_path):
    open_vault(tmp_path, "file")
    path = tmp_path / "vault.key"
    found = json.loads(path.read_bytes())
    found["secret"] = secret_keys.Secrets.new().dumps()
    path.write_text(json.dumps(found))
    with pytest.raises(KeystoreError, match=r"is not the one that .* was sealed with"):
        open_vault(tmp_path, "file")


@pytest.mark.parametrize("secret", UNUSABLE)
def test_what_is_no_key_is_refused(tmp_path, secret):
    open_vault(tmp_path, "file")
    path = tmp_path / "vault.key"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "secret": secret}))
    with pytest.raises(KeystoreError, match=r"not a key of rootlet.*restore"):
        open_vault(tmp_path, "file")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "a"}', b"\xff"])
def test_damaged_notes_and_key_files_are_refused(tmp_path, content):
    open_vault(tmp_path, "file")
    before = (tmp_path / "vault.key").read_bytes()
    (tmp_path / "vault.key").write_bytes(content)
    with pytest.raises(KeystoreError, match="damaged"):
        open_vault(tmp_path, "file")
    (tmp_path / "vault.key").write_bytes(before)
    (tmp_path / "vault.json").write_bytes(content)
    with pytest.raises(KeystoreError, match="damaged"):
        open_vault(tmp_path, "file")


def test_a_crash_between_the_note_and_the_key_is_no_alarm(tmp_path):
    open_vault(tmp_path, "file")
    (tmp_path / "vault.key").unlink()  # nothing was sealed yet
    sealed_file(tmp_path)


def test_erasing_replaces_one_secret_and_leaves_no_byte_of_it(tmp_path):
    vault = open_vault(tmp_path, "file")
    path = tmp_path / "vault.key"
    secret = json.loads(json.loads(path.read_bytes())["secret"])
    examples = cipher_of(vault, "examples", "replay").seal("replay", b"raw")
    learnt = cipher_of(vault, "learnt", "place").seal("adapter", b"weights")
    with path.open("rb") as old:
        vault.erase_examples()
        assert not any(old.read())  # the old file's own blocks were overwritten
    assert secret["examples"].encode() not in b"".join(
        found.read_bytes() for found in tmp_path.rglob("*") if found.is_file()
    )
    for now in (vault, open_vault(tmp_path, "file")):
        with pytest.raises(CheckpointError, match="another key"):
            cipher_of(now, "examples", "replay").open("replay", examples)
        assert cipher_of(now, "learnt", "place").open("adapter", learnt) == b"weights"


def test_a_full_disk_leaves_the_old_secrets(tmp_path, monkeypatch):
    vault = open_vault(tmp_path, "file")
    sealed = cipher_of(vault, "examples", "replay").seal("replay", b"raw")

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeystoreError, match=r"cannot be written \(No space left on device\)"):
        vault.erase_examples()
    monkeypatch.undo()
    for now in (vault, open_vault(tmp_path, "file")):
        assert cipher_of(now, "examples", "replay").open("replay", sealed) == b"raw"
