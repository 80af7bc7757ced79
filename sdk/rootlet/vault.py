"""What a device keeps, encrypted: AES-256-GCM under keys from a key file or the OS keystore.

Each purpose has a random key of its own, so that erasing the examples destroys theirs, and what was
learnt stays readable. Everything sealed is bound to its name: a record, a file or a part of one
that is changed, moved, or put in another's place does not open.

    sealed = nonce (12 random bytes) | AES-256-GCM(key, plain, associated data = purpose | name)

Two sources of keys make two promises:

* `KeyFile`, the default, keeps the keys beside the data (mode 0600). It protects copies that lack
  the file (a backup that leaves it out), and makes erasing final. It does not protect a stolen
  disk.
* `Keystore` keeps them in the operating system's keystore by the package ``keyring``, which is
  locked with the user's session, and there notes how often the store was opened: a folder that is
  put back in an older state is noticed.
"""

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rootlet.errors import StoreError
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import CheckpointError, MissingExtraError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
EXAMPLES, LEARNT = "examples", "learnt"
SERVICE = "rootlet"
KeystoreName = Literal["file", "keyring"]


class KeySource(Protocol):
    """Where keys live."""

    anchors: bool
    """Whether a number kept here outlives a folder that is put back in an older state."""

    def load(self, name: str) -> bytes | None:
        """A secret; None where there is none of this name."""

    def keep(self, name: str, secret: bytes) -> None:
        """Keep a secret in the place of the one before, which is then gone."""


class KeyFile:
    """Keys in a file.

    Args:
        path: Made at the first key.
    """

    anchors = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, name: str) -> bytes | None:
        """As `KeySource`.

        Raises:
            StoreError: The file is damaged.
        """
        found = self._all().get(name)
        return None if found is None else base64.b64decode(found)

    def keep(self, name: str, secret: bytes) -> None:
        """As `KeySource`."""
        every = self._all() | {name: base64.b64encode(secret).decode()}
        write_atomically(self._path, json.dumps(every, sort_keys=True).encode())

    def _all(self) -> dict[str, str]:
        raw = b"{}"
        with contextlib.suppress(FileNotFoundError):
            raw = self._path.read_bytes()
        try:
            found = json.loads(raw)
            return {str(name): str(value) for name, value in found.items()}
        except (ValueError, AttributeError) as error:
            raise StoreError(
                f"the key file {self._path} is damaged ({error}), and what it sealed cannot be "
                "read: put it back from a copy, or remove the state directory"
            ) from None


class Keystore:
    """Keys in the operating system's keystore.

    Args:
        owner: Tells devices of one user apart: the state directory's path.

    Raises:
        MissingExtraError: The package ``keyring`` is not installed.
        StoreError: There is no keystore, or it is locked.
    """

    anchors = True

    def __init__(self, owner: str) -> None:
        try:
            import keyring  # noqa: PLC0415
            import keyring.errors  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                f"the keystore needs keyring, which cannot be imported ({error}); run: "
                'pip install "rootlet[keystore]"'
            ) from error
        self._owner, self._keyring, self._error = owner, keyring, keyring.errors.KeyringError
        self.load("probe")

    def load(self, name: str) -> bytes | None:
        """As `KeySource`.

        Raises:
            StoreError: The keystore does not answer.
        """
        try:
            found = self._keyring.get_password(SERVICE, self._entry(name))
        except self._error as error:
            raise self._locked(error) from error
        return None if found is None else base64.b64decode(found)

    def keep(self, name: str, secret: bytes) -> None:
        """As `KeySource`.

        Raises:
            StoreError: The keystore does not answer.
        """
        try:
            self._keyring.set_password(
                SERVICE, self._entry(name), base64.b64encode(secret).decode()
            )
        except self._error as error:
            raise self._locked(error) from error

    def _entry(self, name: str) -> str:
        return f"{self._owner}#{name}"

    def _locked(self, error: Exception) -> StoreError:
        return StoreError(
            f"the operating system's keystore does not answer ({error}): unlock it, or keep the "
            'keys in a file (keystore="file")'
        )


class Vault:
    """The keys of a device, one for each purpose.

    Args:
        source: Where they live.
    """

    def __init__(self, source: KeySource) -> None:
        self.source = source
        self._keys: dict[str, bytes] = {}

    def key(self, purpose: str) -> bytes:
        """A purpose's key; made on the first call."""
        if purpose not in self._keys:
            found = self.source.load(purpose)
            if found is None or len(found) != KEY_BYTES:
                return self.renew(purpose)
            self._keys[purpose] = found
        return self._keys[purpose]

    def renew(self, purpose: str) -> bytes:
        """A new key in the place of a purpose's, which nobody has any more."""
        fresh = os.urandom(KEY_BYTES)
        self.source.keep(purpose, fresh)
        self._keys[purpose] = fresh
        return fresh

    def cipher(self, purpose: str) -> "Sealed":
        """Seals and opens for one purpose; follows its key when it is renewed."""
        return Sealed(self, purpose)


class Sealed:
    """AES-256-GCM for one purpose (`rootlet_runtime.array_files.Cipher`)."""

    name = "aes-256-gcm"
    overhead = OVERHEAD_BYTES

    def __init__(self, vault: Vault, purpose: str) -> None:
        self.vault, self._purpose = vault, purpose

    def seal(self, name: str, plain: bytes) -> bytes:
        """Nonce, ciphertext and tag."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead().encrypt(nonce, plain, self._bound(name))

    def open(self, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            CheckpointError: It was changed, or is of another name or key.
        """
        try:
            return self._aead().decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound(name)
            )
        except (InvalidTag, ValueError):
            raise CheckpointError(
                f"{name} does not open: it was changed, moved, or sealed with another key"
            ) from None

    def renew(self) -> None:
        """Make everything that was sealed for this purpose unreadable, for good."""
        self.vault.renew(self._purpose)

    def _aead(self) -> AESGCM:
        return AESGCM(self.vault.key(self._purpose))

    def _bound(self, name: str) -> bytes:
        return f"rootlet {self._purpose} {name}".encode()
