"""Checkpoints of a run: torch.distributed.checkpoint over safetensors, whole or not there.

    FOLDER/step-000000120/            renamed into place when it is whole
        shard-….safetensors           what each process holds, written by all at once
        state.json                    step, skeleton of the optimiser, run, SHA-256 of every shard

Nothing in it is pickled. A run may go on with another number of processes or another strategy:
shards are put together by name. What a crash left unfinished is called ``….partial`` and is
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from rootlet_runtime.durable import fsync_folder, write_atomically
from rootlet_server.training.errors import BaseCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from rootlet_server.training.engine import Engine

STATE_FILE, SCHEMA = "state.json", 1
PREFIX, PARTIAL = "step-", ".partial"
CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Header:
    """What ``state.json`` says.

    Attributes:
        step: steps taken.
        run: fingerprint of model, data and configuration.
        plain: the optimiser's skeleton and other plain data.
        shards: SHA-256 by file name.
    """

    step: int
    run: dict[str, Any]
    plain: dict[str, Any]
    shards: dict[str, str]


def save(
    folder: Path,
    engine: Engine,
    *,
    step: int,
    run: dict[str, Any],
    plain: dict[str, Any],
    tensors: dict[str, Tensor],
    keep: int,
) -> Path:
    """Write a checkpoint; all processes call it together.

    Raises:
        BaseCheckpointError: the disk refused.
    """
    final = folder / f"{PREFIX}{step:09d}"
    partial = final.with_name(final.name + PARTIAL)
    try:
        if engine.rank == 0:
            _remove_partial(folder)
            partial.mkdir(parents=True)
        engine.barrier()
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        with _without_warning():
            save_sharded(_contiguous(tensors), storage_writer=writer, no_dist=engine.world == 1)
        if engine.rank == 0:
            _seal(partial, final, step=step, run=run, plain=plain)
            for old in checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
        engine.barrier()
    except OSError as error:
        raise BaseCheckpointError(
            f"{partial}: {error.strerror}; free space, or give a folder that can be written"
        ) from error
    return final


@contextmanager
def _without_warning() -> Iterator[None]:
    """Torch warns of the absence of processes also where none are asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _seal(partial: Path, final: Path, *, step: int, **said: Any) -> None:
    shards = {path.name: _sha256(path) for path in sorted(partial.glob("*.safetensors"))}
    for name in shards:
        with (partial / name).open("rb") as file:
            os.fsync(file.fileno())
    header = {"schema": SCHEMA, "step": step, **said, "shards": shards}
    write_atomically(partial / STATE_FILE, json.dumps(header).encode(), mode=0o644)
    if final.exists():
        shutil.rmtree(final)
    partial.replace(final)
    fsync_folder(final.parent)


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"{PREFIX}*{PARTIAL}"):
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a folder, oldest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if not p.name.endswith(PARTIAL)]
    return sorted(p for p in found if p.is_dir())


def read_header(path: Path, run: dict[str, Any]) -> Header:
    """Check a checkpoint and read what is not a tensor.

    Raises:
        BaseCheckpointError: it is damaged, or of another run.
    """
    try:
        raw = json.loads((path / STATE_FILE).read_bytes())
        header = Header(**{name: raw[name] for name in ("step", "run", "plain", "shards")})
        found = {name: _sha256(path / name) for name in header.shards}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseCheckpointError(f"{path} is damaged ({error}). {_remedy(path)}") from error
    if raw.get("schema") != SCHEMA:
        raise BaseCheckpointError(
            f"{path} has schema {raw.get('schema')!r}, not {SCHEMA}. Start in another folder."
        )
    for name, digest in header.shards.items():
        if found[name] != digest:
            raise BaseCheckpointError(f"{path / name} is not what was written. {_remedy(path)}")
    if header.run != run:
        raise BaseCheckpointError(
            f"{path} is of another run: {_difference(header.run, run)}. Start in another folder, "
            "or put that back."
        )
    return header


def _remedy(path: Path) -> str:
    return f"Delete {path.name} to go on from the one before it."


def _difference(theirs: Any, ours: Any, at: str = "") -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in dict.fromkeys([*theirs, *ours]):
            if theirs.get(key) != ours.get(key):
                return _difference(theirs.get(key), ours.get(key), f"{at}.{key}" if at else key)
    return f"{at} is {theirs!r} there and {ours!r} here"


def load_tensors(path: Path, engine: Engine, tensors: dict[str, Tensor]) -> None:
    """Read into tensors that are there, by name; each process its own part.

    Raises:
        BaseCheckpointError: the shards do not hold them.
    """
    reader = HuggingFaceStorageReader(str(path))
    try:
        with _without_warning():
            load_sharded(tensors, storage_reader=reader, no_dist=engine.world == 1)
    except Exception as error:
        raise BaseCheckpointError(
            f"{path} does not fit this model ({type(error).__name__}: {error}). {_remedy(path)}"
        ) from error
