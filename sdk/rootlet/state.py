"""The directory in which a device keeps what must outlive its process.

```
lock            held by the one client that uses the directory
accepted.json   {"<bundle name>": newest version accepted}
rounds.json     {"day": "2026-11-23", "rounds": 3}
energy.json     {"day": "2026-11-23", "joules": 1.5, "method": "estimated"}
node.key        the node's private key, where it was generated here; node.key.pub beside it
adapter-<hash>/ checkpoint of the adapter of one bundle, by the hash of its manifest; feedback.part
examples/       what the app observed (`rootlet.store`)
replay/         the replay buffer, where the device has one (`rootlet.continual`)
ledger.jsonl    what left the device (`rootlet.ledger`); ledger.head beside it
enrolment/      who vouches for the device in secure rounds (`rootlet.secagg.enrolment`)
keys.json       keys of examples/, replay/ and adapter-…/, unless the OS keystore has them
mailbox/        the server's message in hand, and the node's id there (`rootlet.fleet.mailbox`)
```

Files are written aside, fsynced and renamed; a crash leaves the old file or the new one.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, Self, TypeVar

from rootlet.errors import StateError
from rootlet.fleet.keys import NodeKey
from rootlet.lock import DirectoryLock
from rootlet.vault import KeyFile, Keystore, KeystoreName, Vault
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.errors import RollbackError
from rootlet_runtime.manifest import Manifest

T = TypeVar("T")


class StateDirectory:
    """One device's state; made if absent, readable by its owner only.

    Args:
        path: The directory.

    Raises:
        StateError: Another client uses it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.examples = path / "examples"
        self.mailbox = path / "mailbox"
        self.replay = path / "replay"
        self.enrolment = path / "enrolment"
        self._lock = DirectoryLock(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another client use the directory; a second call does nothing."""
        self._lock.close()

    def accept(self, manifest: Manifest) -> None:
        """Remembers a bundle's version.

        Raises:
            RollbackError: A newer version of the same name was accepted before.
            StateError: ``accepted.json`` is damaged.
        """
        versions = self._read("accepted.json", _versions)
        newest = versions.get(manifest.name, 0)
        if manifest.version < newest:
            raise RollbackError(
                f"bundle {manifest.name} version {manifest.version} is older than version "
                f"{newest}, which this device has accepted: give it version {newest} or newer"
            )
        if manifest.version > newest:
            self._write("accepted.json", versions | {manifest.name: manifest.version})

    def rounds_on(self, day: date) -> int:
        """Rounds trained on a local calendar day.

        Raises:
            StateError: ``rounds.json`` is damaged.
        """
        counted_day, rounds = self._read("rounds.json", _rounds)
        return rounds if counted_day == day.isoformat() else 0

    def count_round(self, day: date) -> int:
        """Counts one more round on ``day``; returns how many that makes."""
        rounds = self.rounds_on(day) + 1
        self._write("rounds.json", {"day": day.isoformat(), "rounds": rounds})
        return rounds

    def energy_on(self, day: date) -> tuple[float, str]:
        """Joules spent on a local calendar day, and how they were found.

        Raises:
            StateError: ``energy.json`` is damaged.
        """
        counted_day, joules, method = self._read("energy.json", _energy)
        return (joules, method) if counted_day == day.isoformat() else (0.0, "measured")

    def keep_energy(self, day: date, joules: float, method: str) -> None:
        """Remembers what has been spent on ``day``."""
        self._write("energy.json", {"day": day.isoformat(), "joules": joules, "method": method})

    def node_key(self) -> NodeKey:
        """The device's own node key; generated on the first call.

        Raises:
            NodeKeyError: The file cannot be read or used.
        """
        path = self.path / "node.key"
        if not path.exists():
            whole = self.path / "node.key.new"  # a crash leaves no half-written key behind
            whole.unlink(missing_ok=True)
            NodeKey.generate().save(whole)
            whole.with_name(f"{whole.name}.pub").replace(path.with_name(f"{path.name}.pub"))
            whole.replace(path)
            fsync_folder(self.path)
        return NodeKey.load(path)

    def vault(self, keystore: KeystoreName) -> Vault:
        """The keys of what lies here.

        Raises:
            MissingExtraError: ``keyring`` is asked for, and its package is not installed.
            StoreError: The keys cannot be read.
        """
        if keystore == "keyring":
            return Vault(Keystore(str(self.path.resolve())))
        return Vault(KeyFile(self.path / "keys.json"))

    def adapter(self, manifest_sha256: str) -> Path:
        """Where the checkpoint of a bundle's adapter lies; it may not exist yet."""
        return self.path / f"adapter-{manifest_sha256[:16]}"

    def remove_other_adapters(self, manifest_sha256: str) -> None:
        """Removes the checkpoints of every bundle but this one."""
        for folder in self.path.glob("adapter-*"):
            if folder != self.adapter(manifest_sha256):
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self, name: str, check: Callable[[Any], T]) -> T:
        raw = "{}"
        with contextlib.suppress(FileNotFoundError):
            raw = (self.path / name).read_text(encoding="utf-8")
        try:
            return check(json.loads(raw))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise StateError(
                f"{self.path / name} is damaged ({error}): restore it from a copy, "
                "or remove the state directory and lose what the device has learnt"
            ) from error

    def _write(self, name: str, value: object) -> None:
        raw = json.dumps(value, sort_keys=True).encode("utf-8")
        write_atomically(self.path / name, raw)


def _versions(value: Any) -> dict[str, int]:
    return {str(name): int(version) for name, version in value.items()}


def _energy(value: Any) -> tuple[str, float, str]:
    joules = float(value.get("joules", 0.0))
    if not joules >= 0:
        raise ValueError(f"joules {joules}")
    return str(value.get("day", "")), joules, str(value.get("method", "measured"))


def _rounds(value: Any) -> tuple[str, int]:
    return str(value.get("day", "")), int(value.get("rounds", 0))
