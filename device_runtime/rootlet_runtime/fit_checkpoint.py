"""The checkpoint of an unfinished fit: which fit it is, where it stands, what is to be kept."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rootlet_runtime.array_files import PLAIN, Cipher
from rootlet_runtime.batches import AnyArray
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.checkpoint import (
    Checkpoint,
    fitting_state,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from rootlet_runtime.state import TrainState

FIT_STEM = "fit"


def fingerprint(settings: object, arrays: Iterable[AnyArray]) -> str:
    """Which fit it is: SHA-256 (hex) over its settings and data."""
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        digest.update(f"|{array.dtype}{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FitCheckpoint:
    """Where one fit is kept.

    Attributes:
        folder: on disk; None keeps nothing.
        bundle: what is trained.
        fingerprint: of the fit; the checkpoint of another one is ignored.
        cipher: what its arrays pass through.
    """

    folder: Path | None
    bundle: Bundle
    fingerprint: str
    cipher: Cipher = PLAIN

    def read(self) -> Checkpoint | None:
        """The checkpoint of this fit, if there is one; both states fit the bundle.

        Raises:
            CheckpointError: damaged.
        """
        if self.folder is None:
            return None
        found = read_checkpoint(self.folder, FIT_STEM, self.cipher)
        if found is None or found.notes.get("fingerprint") != self.fingerprint:
            return None
        return Checkpoint(
            state=fitting_state(found, found.state, self.bundle, self.folder),
            manifest_sha256=found.manifest_sha256,
            notes=found.notes,
            good=None
            if found.good is None
            else fitting_state(found, found.good, self.bundle, self.folder),
        )

    def write(self, state: TrainState, good: TrainState, notes: Mapping[str, Any]) -> None:
        """Replaces the checkpoint.

        Raises:
            CheckpointError: the disk refused; an older checkpoint is as it was.
        """
        if self.folder is not None:
            checkpoint = Checkpoint(
                state=state,
                good=good,
                manifest_sha256=self.bundle.manifest_sha256,
                notes={**notes, "fingerprint": self.fingerprint},
            )
            write_checkpoint(self.folder, FIT_STEM, checkpoint, self.cipher)

    def remove(self) -> None:
        """Leaves nothing to take up."""
        if self.folder is not None:
            remove_checkpoint(self.folder, FIT_STEM)
