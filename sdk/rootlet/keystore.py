"""Where a device's keys lie: in a file, or in the key store of its operating system.

| | a file (`KeyFile`) | the system's key store (`SystemKeys`) |
|---|---|---|
| a copy of the data without the key | unreadable | unreadable |
| the whole disk, or the state directory with the key in it | readable | unreadable, as far as the \
system's key store keeps its promise |
| older files put back | not noticed | refused: the store keeps the newest generation |

`KeyFile` asks nobody and works without a session; it is the default. Another key store is any
object with the attributes and methods of `KeyStore`.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

from rootlet.errors import KeystoreError
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.errors import MissingExtraError

SERVICE = "rootlet"
"""Under which name the entries are found in the system's key store."""


class KeyStore(Protocol):
    """Keeps short secrets under names.

    Attributes:
        kind: Its name; a state directory is opened with the kind that it was sealed with.
        anchors: Whether it stays as it is when the state directory is replaced by an older copy.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102 (see Attributes)

    @property
    def anchors(self) -> bool: ...  # noqa: D102

    def read(self, entry: str) -> str | None:
        """The secret of this name; None where there is none.

        Raises:
            KeystoreError: It cannot be asked.
        """

    def write(self, entry: str, secret: str) -> None:
        """Replaces a secret: afterwards, and after a crash, there is the old one or the new one.

        Raises:
            KeystoreError: It refuses.
        """

    def remove(self, entry: str) -> None:
        """Removes a secret, if it is there.

        Raises:
            KeystoreError: It refuses.
        """


class KeyFile:
    """One secret in a file that only its owner may read.

    Promise: who has a copy of the sealed files and not this one can read nothing. Whoever has the
    disk, or runs as the same user, has both. A replaced key is overwritten in place before its
    blocks are given back; a flash medium or a copying file system may keep them all the same.

    Args:
        path: The file; beside the state by default, better on another medium.
    """

    kind = "file"
    anchors = False

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def read(self, entry: str) -> str | None:
        """The secret; None where there is no file.

        Raises:
            KeystoreError: It cannot be read, may be read by others, or is another state's.
        """
        try:
            content = self.path.read_bytes()
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused("read", error) from error
        if mode & 0o077:
            raise KeystoreError(
                f"key file {self.path} has mode {mode:o}, so others may use it; "
                f"run chmod 600 {self.path}"
            )
        try:
            found = json.loads(content)
            owner, secret = str(found["entry"]), str(found["secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise KeystoreError(
                f"key file {self.path} is damaged ({type(error).__name__}): restore it from a copy"
            ) from error
        if owner != entry:
            raise KeystoreError(
                f"key file {self.path} is of state {owner.partition('/')[0]}, not of "
                f"{entry.partition('/')[0]}: give the key file of this state directory"
            )
        return secret

    def write(self, entry: str, secret: str) -> None:
        """Replaces the file, and overwrites the one before.

        Raises:
            KeystoreError: The disk refuses.
        """
        try:
            with self._wiped_afterwards():
                write_atomically(self.path, json.dumps({"entry": entry, "secret": secret}).encode())
        except OSError as error:
            raise self._refused("written", error) from error

    def remove(self, entry: str) -> None:
        """Overwrites the file and removes it.

        Raises:
            KeystoreError: The disk refuses.
        """
        del entry
        try:
            with self._wiped_afterwards():
                self.path.unlink(missing_ok=True)
                fsync_folder(self.path.parent)
        except OSError as error:
            raise self._refused("removed", error) from error

    @contextlib.contextmanager
    def _wiped_afterwards(self) -> Iterator[None]:
        """Overwrites what the file holds now, once something else is in its place."""
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):  # a crash before the rename
            left.unlink()
        try:
            old = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            yield
            os.pwrite(old, bytes(os.fstat(old).st_size), 0)
            os.fsync(old)
        finally:
            os.close(old)

    def _refused(self, done: str, error: OSError) -> KeystoreError:
        return KeystoreError(
            f"key file {self.path} cannot be {done} ({error.strerror or error}): make room, or "
            "give one that this user may use"
        )


class SystemKeys:
    """The key store of the operating system, through the package ``keyring``.

    What it promises is the system's: most keep secrets encrypted until the user logs in. It may ask
    the user, or wait for one: use it where there is a session, or a backend that needs none.

    Args:
        service: Under which name the entries are kept.

    Raises:
        MissingExtraError: ``keyring`` is not installed.
    """

    kind = "keyring"
    anchors = True

    def __init__(self, service: str = SERVICE) -> None:
        self._service = service
        self._keyring = _keyring()

    def read(self, entry: str) -> str | None:
        """The secret of this name; None where there is none.

        Raises:
            KeystoreError: The key store cannot be asked.
        """
        try:
            found: str | None = self._keyring.get_password(self._service, entry)
        except Exception as error:  # a backend raises what its system gives it
            raise self._refused(error) from error
        return found

    def write(self, entry: str, secret: str) -> None:
        """Replaces a secret.

        Raises:
            KeystoreError: The key store refuses.
        """
        try:
            self._keyring.set_password(self._service, entry, secret)
        except Exception as error:
            raise self._refused(error) from error

    def remove(self, entry: str) -> None:
        """Removes a secret, if it is there.

        Raises:
            KeystoreError: The key store refuses.
        """
        try:
            self._keyring.delete_password(self._service, entry)
        except self._keyring.errors.PasswordDeleteError:
            return
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> KeystoreError:
        backend = type(self._keyring.get_keyring())
        return KeystoreError(
            f"the system's key store ({backend.__module__}.{backend.__qualname__}) cannot be used "
            f"({type(error).__name__}: {error}): unlock it, configure a backend of keyring, or "
            'give keystore="file"'
        )


def _keyring() -> ModuleType:
    try:
        import keyring  # noqa: PLC0415 (an extra)
        import keyring.errors  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            'keystore="keyring" needs keyring, which is not installed; run: '
            'pip install "rootlet[keystore]"'
        ) from error
    return keyring
