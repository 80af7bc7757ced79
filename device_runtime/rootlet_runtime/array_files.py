"""Named arrays on disk, each file whole or absent: what a learner remembers between two runs.

A file holds the SHA-256 of what follows it, then safetensors; notes travel as JSON in a tensor of
bytes. Nothing in a file is executed. A crash at any point leaves the old file or the new one.

``Cipher`` is the seam for encryption at rest: every byte of a file passes through it. The files are
readable by their owner only; ``Plain``, the default, does not encrypt.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from rootlet_runtime import strict_json
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.errors import CheckpointError

AnyArrays = dict[str, npt.NDArray[Any]]

MAX_FILE_BYTES = 2**31
OVERHEAD_BYTES = 4096
"""Most bytes of a file beside its arrays, where notes stay below 2 kB and arrays below ten."""

_DIGEST_BYTES = hashlib.sha256().digest_size
_NOTES = "notes.json"
_SUFFIX = ".arrays"


class Cipher(Protocol):
    """Seals what is written and opens what is read; ``name`` binds a file to its place."""

    def seal(self, name: str, plain: bytes) -> bytes:
        """What goes to the disk."""

    def open(self, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            CheckpointError: it was changed, or is of another name or key.
        """


class Plain:
    """No encryption; ``overhead`` is what sealing adds, in bytes."""

    name, overhead = "none", 0

    def seal(self, name: str, plain: bytes) -> bytes:
        """The same bytes."""
        del name
        return plain

    def open(self, name: str, sealed: bytes) -> bytes:
        """The same bytes."""
        del name
        return sealed


PLAIN = Plain()


class ArrayFiles:
    """A folder of named arrays.

    Args:
        folder: made at the first write.
        cipher: what every file passes through.
    """

    def __init__(self, folder: Path, cipher: Cipher | None = None) -> None:
        self.folder = folder
        self._cipher: Cipher = PLAIN if cipher is None else cipher

    def names(self) -> list[str]:
        """The names that are there, sorted."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.folder.glob("*" + _SUFFIX))

    def write(
        self, name: str, arrays: Mapping[str, npt.NDArray[Any]], notes: Mapping[str, Any]
    ) -> None:
        """Replaces a file; ``notes`` are what JSON can hold.

        Raises:
            CheckpointError: the disk refused; the file is as it was.
        """
        encoded = np.frombuffer(strict_json.dumps(notes), np.uint8)
        data = safetensors.numpy.save({**arrays, _NOTES: encoded})
        sealed = self._cipher.seal(name, hashlib.sha256(data).digest() + data)
        try:
            write_atomically(self._path(name), sealed)
        except OSError as error:
            raise CheckpointError(
                f"{self._path(name)} cannot be written ({error.strerror or error}); the one before "
                "it is intact. Free some space or choose another folder"
            ) from error

    def read(self, name: str) -> tuple[AnyArrays, dict[str, Any]] | None:
        """Arrays and notes; ``None`` where there is no such file.

        Raises:
            CheckpointError: damaged.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise CheckpointError(f"{path} is larger than {MAX_FILE_BYTES} bytes: remove it")
            raw = self._cipher.open(name, path.read_bytes())
        except OSError as error:
            raise _damaged(path, f"it cannot be read ({error.strerror or error})") from error
        digest, data = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise _damaged(path, "its SHA-256 is not the recorded one")
        try:
            arrays: AnyArrays = safetensors.numpy.load(data)
            notes = strict_json.parse(arrays.pop(_NOTES).tobytes())
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise _damaged(path, str(error)) from error
        if not isinstance(notes, dict):
            raise _damaged(path, "its notes are not an object")
        return arrays, notes

    def remove(self, name: str) -> None:
        """Removes a file if it is there: unlinked, not overwritten."""
        path = self._path(name)
        if path.exists():
            path.unlink()
            fsync_folder(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}. Delete it to start without it")
