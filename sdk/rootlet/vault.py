"""The keys of one device's state, and what they seal.

A state directory has two secrets of 32 random bytes: ``examples``, for everything that can be read
back as an example (the store, the replay buffer), and ``learnt``, for adapters, unfinished fits and
the message in hand. They lie in a `rootlet.keystore`. No secret seals anything itself:

    key = HKDF-SHA-256(secret, salt, "rootlet 1 <purpose>")

A sealed file is

    "rootlet sealed 1" LF | key id (8) | nonce (12, random) | AES-256-GCM(content) | tag (16)

with the purpose and the file's name as associated data: a file that was changed, renamed or put in
another folder is refused. The key id tells which secret it was, and nothing about it.

Erasing is replacing ``examples`` in the key store: from that moment nothing that it sealed can be
read, wherever a medium keeps its blocks. ``vault.json`` (no secrets) names the key store.
"""

import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Literal, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rootlet.anchor import Anchor
from rootlet.errors import ConfigError, KeystoreError, StateError
from rootlet.keystore import KeyFile, KeyStore, SystemKeys
from rootlet.secret_keys import (
    MAGIC,
    Part,
    Secrets,
    UnsealError,
    derived,
    key_id,
    new_secret,
    seal,
    unseal,
)
from rootlet_runtime.cipher import PLAIN, Cipher
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import CheckpointError

NOTE, KEY_FILE = "vault.json", "vault.key"

KeystoreChoice = KeyStore | Literal["file", "keyring"]


class Vault:
    """The secrets of one state directory; made at the first opening.

    Whoever opens it holds the directory's lock. Any thread may use it.

    Args:
        folder: The state directory.
        keystore: Has the secrets; one of another kind gets them from the directory's key file.

    Raises:
        KeystoreError: The key is missing, is another state's, or the key store cannot be used.
        ConfigError: The directory was sealed with another kind of key store.
    """

    def __init__(self, folder: Path, keystore: KeyStore) -> None:
        self._keystore = keystore
        self._lock = threading.Lock()
        note = _Note.read(folder)
        secrets = None if note is None else _secrets_of(folder, note, keystore)
        if note is None or secrets is None:
            secrets = Secrets.new()
            note = _Note.of(token_hex(8), keystore, secrets)
            note.write(folder)
            _give(keystore, note.entry("keys"), secrets.dumps())
        self._note, self._secrets = note, secrets

    def anchor(self, name: str) -> Anchor:
        """The anchor of this name."""
        return Anchor(self._keystore, self._note.entry(name))

    def id_of(self, part: Part) -> bytes:
        """Names the secret of a part, in 8 bytes."""
        return key_id(self._secrets.of(part))

    @property
    def erased_id(self) -> bytes:
        """Names the examples' secret that was erased last; what it sealed is to be removed."""
        return bytes.fromhex(self._secrets.erased)

    def aead(self, part: Part, purpose: str, salt: bytes) -> AESGCM:
        """AES-256-GCM under a key of a purpose of its own."""
        return AESGCM(derived(self._secrets.of(part), purpose, salt))

    def seal(self, part: Part, purpose: str, name: str, plain: bytes) -> bytes:
        """A sealed file."""
        return seal(self._secrets.of(part), purpose, name, plain)

    def unseal(self, part: Part, purpose: str, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            UnsealError: It was changed, or is of another name, purpose or key.
        """
        return unseal(self._secrets.of(part), purpose, name, sealed)

    def erase_examples(self) -> None:
        """Destroys the examples' secret; another one is in its place.

        Raises:
            KeystoreError: The key store refuses; the secret is as it was.
        """
        erased = self.id_of("examples").hex()
        self._change(lambda now: replace(now, examples=new_secret(), erased=erased))

    def is_plain(self, part: Part) -> bool:
        """Whether a part may still have files from before the directory was sealed."""
        return part in self._secrets.plain

    def sealed(self, part: Part) -> None:
        """From now on, files of a part that are not sealed are refused."""
        self._change(
            lambda now: replace(now, plain=tuple(name for name in now.plain if name != part))
        )

    def _change(self, change: Callable[[Secrets], Secrets]) -> None:
        with self._lock:
            changed = change(self._secrets)
            _give(self._keystore, self._note.entry("keys"), changed.dumps())
            self._secrets = changed


class _SealedFiles:
    """A `Cipher` for whole files of one purpose."""

    def __init__(self, vault: Vault, part: Part, purpose: str) -> None:
        self._vault, self._part, self._purpose = vault, part, purpose

    def seal(self, name: str, plain: bytes) -> bytes:
        """What goes to the disk."""
        return self._vault.seal(self._part, self._purpose, name, plain)

    def open(self, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            CheckpointError: It was changed, or is of another name or key.
        """
        try:
            return self._vault.unseal(self._part, self._purpose, name, sealed)
        except UnsealError as error:
            raise CheckpointError(
                f"{self._purpose}: {name} {error}. Keep it as evidence, and move it away to start "
                "without it"
            ) from None


@dataclass(frozen=True, kw_only=True)
class _Note:
    """``vault.json``: which key store has the secrets, under which id, and which ones they are."""

    id: str
    keystore: str
    learnt: str

    @classmethod
    def of(cls, id_: str, keystore: KeyStore, secrets: Secrets) -> Self:
        return cls(id=id_, keystore=keystore.kind, learnt=key_id(secrets.learnt).hex())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        path = folder / NOTE
        try:
            found = json.loads(path.read_bytes())
            return cls(**{name: str(found[name]) for name in ("id", "keystore", "learnt")})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KeystoreError(
                f"{path} is damaged ({error}): restore it from a copy, or remove the state "
                "directory and lose what it holds"
            ) from error

    def write(self, folder: Path) -> None:
        note = {"id": self.id, "keystore": self.keystore, "learnt": self.learnt}
        write_atomically(folder / NOTE, json.dumps(note).encode())

    def entry(self, name: str) -> str:
        return f"{self.id}/{name}"


def open_vault(folder: Path, keystore: KeystoreChoice | None) -> Vault | None:
    """The vault of a state directory; None where nothing is to be sealed.

    Args:
        folder: The state directory.
        keystore: ``"file"`` for ``vault.key`` within it, ``"keyring"`` for the system's key store,
            a key store, or None.

    Raises:
        KeystoreError: The key is missing, is another state's, or the key store cannot be used.
        ConfigError: An unknown name, or another kind than the directory was sealed with.
        StateError: It is sealed, and ``keystore`` is None.
        MissingExtraError: ``keyring`` is not installed.
    """
    if keystore is not None:
        return Vault(folder, _resolved(folder, keystore))
    if (folder / NOTE).exists():
        raise StateError(
            f"{folder} is sealed: give the keystore that it was sealed with, or remove the "
            "directory and lose what it holds"
        )
    return None


def cipher_of(vault: Vault | None, part: Part, purpose: str) -> Cipher:
    """Seals whole files; `PLAIN` where there is no vault."""
    return PLAIN if vault is None else _SealedFiles(vault, part, purpose)


def _secrets_of(folder: Path, note: _Note, keystore: KeyStore) -> Secrets | None:
    """The secrets of a directory that was opened before; None where it never came to that."""
    moves = note.keystore != keystore.kind
    if moves and note.keystore != KeyFile.kind:
        raise ConfigError(
            f"{folder} is sealed with a key in the {note.keystore} key store: give "
            f'keystore="{note.keystore}", not {keystore.kind}'
        )
    source = _file_of(folder) if moves else keystore
    text = source.read(note.entry("keys"))
    if text is None:
        if any(map(_is_sealed, folder.rglob("*"))):
            raise KeystoreError(
                f"{folder} is sealed, and its key is not in the {source.kind} key store: restore "
                "the key, or remove the directory and lose what it holds"
            )
        return None
    found = Secrets.loads(text)
    if note.learnt != key_id(found.learnt).hex():
        raise KeystoreError(
            f"the key in the {source.kind} key store is not the one that {folder} was sealed "
            "with: restore the right one"
        )
    if moves:  # the file has the key until the note names the other store
        _give(keystore, note.entry("keys"), text)
        _Note.of(note.id, keystore, found).write(folder)
    if keystore.kind != KeyFile.kind:
        _file_of(folder).remove(note.entry("keys"))
    return found


def _give(keystore: KeyStore, entry: str, secret: str) -> None:
    keystore.write(entry, secret)
    if keystore.read(entry) != secret:
        raise KeystoreError(
            f"the {keystore.kind} key store does not give back what it was given: configure "
            'another backend, or give keystore="file"'
        )


def _resolved(folder: Path, keystore: KeystoreChoice) -> KeyStore:
    if not isinstance(keystore, str):
        return keystore
    if keystore == KeyFile.kind:
        return _file_of(folder)
    if keystore == SystemKeys.kind:
        return SystemKeys()
    raise ConfigError(f'keystore is {keystore!r}: give "file", "keyring", a key store, or None')


def _file_of(folder: Path) -> KeyFile:
    return KeyFile(folder / KEY_FILE)


def _is_sealed(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(MAGIC)).startswith(b"rootlet sealed")
    return False
