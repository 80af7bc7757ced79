"""Takes over what a state directory kept before it was sealed.

Each file is read, written sealed, and only then removed; a crash in between repeats what is left.
The plain blocks stay on the medium until they are used again: unlinking does not overwrite them.
"""

import logging
from pathlib import Path

from rootlet.errors import StoreError
from rootlet.secret_keys import MAGIC
from rootlet.segment import Observed, PlainSegments
from rootlet.segment_log import SegmentLog
from rootlet.vault import Vault, cipher_of
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.checkpoint import read_checkpoint, remove_checkpoint, write_checkpoint
from rootlet_runtime.cipher import Cipher
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.fit_checkpoint import FIT_STEM
from rootlet_runtime.trainer import TRAINER_STEM

_log = logging.getLogger(__name__)


def seal_examples(
    folder: Path, plain: PlainSegments, log: SegmentLog, vault: Vault, now: float
) -> None:
    """Takes the plain segments of a store into its sealed ones, under their numbers and times.

    Raises:
        StoreError: There are some, but the store was sealed before: somebody put them there.
        OSError: The disk refuses; the next opening goes on.
    """
    paths = sorted(folder.glob("*" + plain.suffix))
    if paths and not vault.is_plain("examples"):
        raise StoreError(
            f"{paths[0]} is not sealed, and the examples in {folder} are: move the file away"
        )
    for path in paths:
        records = plain.read(path, plain.found(path))
        examples = [
            Observed(int(row["counter"]), int(row["time"]), row["x"], row["y"])
            for row in records
            if row["counter"] >= log.next
        ]
        while examples:
            examples = examples[log.append(examples, now) :]
    for path in paths:
        path.unlink()
    if paths:
        fsync_folder(folder)
        _log.info("%d files of examples in %s are encrypted now", len(paths), folder)
    if vault.is_plain("examples"):
        vault.sealed("examples")


def seal_files(state: Path, vault: Vault) -> None:
    """Takes adapters, unfinished trainings, the replay buffer and the message in hand.

    What is damaged is removed, as it would be refused when it is read.

    Raises:
        OSError: The disk refuses; the next opening goes on.
        CheckpointError: The disk refuses; the next opening goes on.
    """
    if not vault.is_plain("learnt"):
        return
    for folder in sorted(state.glob("adapter-*")):
        adapter = cipher_of(vault, "learnt", folder.name)
        _seal_checkpoint(folder, TRAINER_STEM, adapter)
        _seal_checkpoint(folder, FIT_STEM, adapter)
        _seal_checkpoint(folder / "round", FIT_STEM, adapter)
        for name in ("tasks", "control", "elastic"):
            _seal_arrays(folder / name, cipher_of(vault, "learnt", f"{folder.name}/{name}"))
    _seal_arrays(state / "replay", cipher_of(vault, "examples", "replay"))
    message = state / "mailbox" / "message"
    if message.exists() and not message.read_bytes().startswith(MAGIC):
        sealed = cipher_of(vault, "learnt", "mailbox").seal(message.name, message.read_bytes())
        write_atomically(message, sealed)
    vault.sealed("learnt")


def _seal_checkpoint(folder: Path, stem: str, cipher: Cipher) -> None:
    path = folder / f"{stem}.json"
    if not path.exists() or path.read_bytes().startswith(MAGIC):
        return
    try:
        found = read_checkpoint(folder, stem)
    except CheckpointError as error:
        _log.warning("left out when the directory was sealed: %s", error)
        remove_checkpoint(folder, stem)
        return
    if found is not None:
        write_checkpoint(folder, stem, found, cipher)


def _seal_arrays(folder: Path, cipher: Cipher) -> None:
    plain, sealed = ArrayFiles(folder), ArrayFiles(folder, cipher)
    for name in plain.names():
        if (folder / f"{name}.arrays").read_bytes().startswith(MAGIC):
            continue
        try:
            found = plain.read(name)
        except CheckpointError as error:
            _log.warning("left out when the directory was sealed: %s", error)
            plain.remove(name)
            continue
        if found is not None:
            sealed.write(name, *found)
