"""Training state on disk: safetensors and JSON, never pickle.

A crash at any point leaves the old checkpoint or the new one, whole.

A checkpoint ``<stem>`` in a folder is two files. ``<stem>-<hash>.safetensors`` holds the arrays and
is named by its own SHA-256, so a new one never overwrites an old one. ``<stem>.json`` names it and
is renamed into place last: that rename is the commit. What the JSON no longer names is removed
afterwards.
"""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from rootlet_runtime import strict_json
from rootlet_runtime.array_files import PLAIN, Cipher
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_runtime.errors import AdapterError, CheckpointError
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import Arrays, check_arrays

SCHEMA = 1
MAX_JSON_BYTES = 2**20
_ADAPTER, _OPTIMIZER = "adapter/", "optimizer/"
_GOOD = "good/"


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The JSON file; ``checksum`` is the SHA-256 of the record with an empty checksum."""

    schema: int
    manifest_sha256: str
    data_file: str
    data_sha256: str
    data_bytes: int
    steps: int
    good_steps: int | None
    notes: Mapping[str, Any]
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state, the bundle that it belongs to, and what the writer noted beside it.

    ``good`` is an earlier state that the writer may have to go back to.
    """

    state: TrainState
    manifest_sha256: str
    notes: Mapping[str, Any]
    good: TrainState | None = None


def write_checkpoint(
    folder: Path, stem: str, checkpoint: Checkpoint, cipher: Cipher = PLAIN
) -> None:
    """Writes atomically; an older checkpoint of the same stem is replaced.

    The arrays pass through ``cipher``; the record beside them, which holds none, does not.

    Raises:
        CheckpointError: the disk refused; the older checkpoint is as it was.
    """
    state, good = checkpoint.state, checkpoint.good
    arrays = _joined(state)
    if good is not None:
        arrays |= {_GOOD + name: array for name, array in _joined(good).items()}
    data = cipher.seal(stem, safetensors.numpy.save(arrays))
    digest = hashlib.sha256(data).hexdigest()
    record = _Record(
        schema=SCHEMA,
        manifest_sha256=checkpoint.manifest_sha256,
        data_file=_data_file(stem, digest),
        data_sha256=digest,
        data_bytes=len(data),
        steps=state.steps,
        good_steps=None if good is None else good.steps,
        notes=checkpoint.notes,
        checksum="",
    )
    encoded = strict_json.dumps(replace(record, checksum=_checksum(record)))
    try:
        write_atomically(folder / record.data_file, data)
        write_atomically(folder / f"{stem}.json", encoded)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the checkpoint {stem!r} cannot be written ({error.strerror or error}); the "
            "one before it is intact. Free some space or choose another folder"
        ) from error
    _sweep(folder, stem, keep=record.data_file)


def read_checkpoint(folder: Path, stem: str, cipher: Cipher = PLAIN) -> Checkpoint | None:
    """The checkpoint of this stem, or ``None`` where there is none.

    Raises:
        CheckpointError: damaged.
    """
    path = folder / f"{stem}.json"
    if not path.exists():
        return None
    record = _read_record(path)
    data = _read(folder / record.data_file, record.data_bytes)
    if hashlib.sha256(data).hexdigest() != record.data_sha256:
        raise _damaged(folder / record.data_file, "its SHA-256 is not the recorded one")
    try:
        arrays: Arrays = safetensors.numpy.load(cipher.open(stem, data))
    except (safetensors.SafetensorError, ValueError, KeyError, CheckpointError) as error:
        raise _damaged(folder / record.data_file, str(error)) from error
    return Checkpoint(
        state=_state(arrays, record.steps),
        manifest_sha256=record.manifest_sha256,
        notes=record.notes,
        good=None
        if record.good_steps is None
        else _state(_split(arrays, _GOOD), record.good_steps),
    )


def fitting_state(
    checkpoint: Checkpoint, state: TrainState, bundle: Bundle, folder: Path
) -> TrainState:
    """One of the checkpoint's states, if it belongs to ``bundle``.

    Raises:
        CheckpointError: saved with another bundle, or its arrays are not those of this one.
    """
    manifest = bundle.manifest
    try:
        if checkpoint.manifest_sha256 != bundle.manifest_sha256:
            raise AdapterError(f"it was saved with the bundle {checkpoint.manifest_sha256[:16]}…")
        return TrainState(
            adapter=check_arrays(state.adapter, manifest.adapter),
            optimizer=check_arrays(state.optimizer, manifest.optimizer_state),
            steps=state.steps,
        )
    except AdapterError as error:
        raise CheckpointError(
            f"{folder}: not a checkpoint of {manifest.name} version {manifest.version} "
            f"({bundle.manifest_sha256[:16]}…): {error}. Restore it with the bundle that it was "
            "saved with, or start again from this bundle's adapter"
        ) from error


def remove_checkpoint(folder: Path, stem: str) -> None:
    """Removes a checkpoint; the JSON goes first, so that a crash leaves none or all of it."""
    path = folder / f"{stem}.json"
    if path.exists():
        path.unlink()
        fsync_folder(folder)
        _sweep(folder, stem, keep="")


def _read_record(path: Path) -> _Record:
    raw = _read(path, None)
    try:
        record = strict_json.decode(strict_json.parse(raw), _Record)
    except strict_json.StrictJsonError as error:
        raise _damaged(path, str(error)) from error
    if record.schema != SCHEMA or record.checksum != _checksum(record):
        raise _damaged(path, "its checksum or schema is not the expected one")
    if strict_json.dumps(record) != raw:
        raise _damaged(path, "it is not in its canonical encoding")
    if min(record.steps, record.good_steps or 0) < 0 or record.data_file != _data_file(
        path.stem, record.data_sha256
    ):
        raise _damaged(path, "a value in it is impossible")
    return record


def _data_file(stem: str, digest: str) -> str:
    return f"{stem}-{digest[:16]}.safetensors"


def _checksum(record: _Record) -> str:
    return hashlib.sha256(strict_json.dumps(replace(record, checksum=""))).hexdigest()


def _read(path: Path, size: int | None) -> bytes:
    try:
        found = path.stat().st_size
        if (found > MAX_JSON_BYTES) if size is None else (found != size):
            raise _damaged(path, f"it has {found} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error.strerror or error})") from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint is damaged: {reason}. Delete the folder {path.parent} to start "
        "again from the bundle's adapter, or restore it from a copy"
    )


def _joined(state: TrainState) -> Arrays:
    arrays = {_ADAPTER + name: array for name, array in state.adapter.items()}
    return arrays | {_OPTIMIZER + name: array for name, array in state.optimizer.items()}


def _state(arrays: Arrays, steps: int) -> TrainState:
    return TrainState(
        adapter=_split(arrays, _ADAPTER), optimizer=_split(arrays, _OPTIMIZER), steps=steps
    )


def _split(arrays: Arrays, prefix: str) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _sweep(folder: Path, stem: str, keep: str) -> None:
    """Removes what no record names, crashed writers' files included; failing to is harmless."""
    for path in (*folder.glob(f"{stem}-*.safetensors"), *folder.glob(f".{stem}*.tmp")):
        if path.name != keep:
            with contextlib.suppress(OSError):
                path.unlink()
