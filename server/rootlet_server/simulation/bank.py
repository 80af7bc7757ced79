"""What clients keep between rounds, in one memory-mapped file: one row a client.

Optimiser state, control variates, counters, a replay buffer's arrays: whatever has a fixed shape.
Rows are read and written by client number; pages of clients that never took part cost no memory,
and on most file systems no disk.

A round's rows are staged in a file beside the bank, and enter the bank only after the round's
checkpoint is written. A kill leaves the rows of the last finished round: staged rows of a round
that the checkpoint knows are applied, those of any other are dropped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import SimulationStateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    Clients = npt.NDArray[np.int64]
    Values = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Slot:
    """One array that every client keeps: float32, zeros at first."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers of one client."""
        return int(np.prod(self.shape, dtype=np.int64))


class ClientBank:
    """Rows of clients.

    Args:
        path: the file; made where it is not there.
        clients: how many rows.
        slots: what a row holds.

    Raises:
        SimulationStateError: the file holds rows of another layout.
    """

    def __init__(self, path: Path, clients: int, slots: Iterable[Slot]) -> None:
        self._path = path
        self.slots = {slot.name: slot for slot in slots}
        self._offsets: dict[str, int] = {}
        width = 0
        for slot in self.slots.values():
            self._offsets[slot.name] = width
            width += slot.elements
        layout = {
            "clients": clients,
            "slots": [[slot.name, list(slot.shape)] for slot in self.slots.values()],
        }
        note = path.with_suffix(".json")
        if note.exists():
            if json.loads(note.read_bytes()) != layout:
                raise SimulationStateError(
                    f"{path}: holds rows of another simulation; use another state directory"
                )
        else:
            with path.open("wb") as file:
                file.truncate(4 * max(width, 1) * clients)  # a hole: nothing is written yet
            write_atomically(note, json.dumps(layout).encode())
        self._rows = np.memmap(path, np.float32, "r+", shape=(clients, max(width, 1)))

    def read(self, clients: Clients, names: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of some clients' rows, [n, ...] by name."""
        found = self._rows[clients]
        return {name: self._cut(found, name) for name in names}

    def stage(self, clients: Clients, values: Values) -> None:
        """Notes new rows of some clients, with every slot, for the round that is going on."""
        rows = np.concatenate(
            [np.reshape(values[name], (len(clients), -1)) for name in self.slots], axis=1
        )
        with self._staged().open("ab") as file:
            file.write(np.array([len(clients)], np.int64).tobytes())
            file.write(np.asarray(clients, np.int64).tobytes())
            file.write(rows.astype(np.float32).tobytes())

    def commit(self, round_: int) -> None:
        """The staged rows are a round's, and whole: the checkpoint may be written."""
        staged = self._staged()
        if staged.exists():
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            staged.replace(self._staged(round_))

    def apply(self, round_: int) -> None:
        """The checkpoint of that round is written: its rows enter the bank."""
        path = self._staged(round_)
        if not path.exists():
            return
        width = self._rows.shape[1]
        with path.open("rb") as file:
            while head := file.read(8):
                count = int(np.frombuffer(head, np.int64)[0])
                clients = np.frombuffer(file.read(8 * count), np.int64)
                rows = np.frombuffer(file.read(4 * count * width), np.float32)
                self._rows[clients] = rows.reshape(count, width)
        self._rows.flush()
        path.unlink()

    def recover(self, round_: int) -> None:
        """After a kill: the rows of the last finished round, and of no other."""
        self.apply(round_)
        for left in self._path.parent.glob(f"{self._path.name}.staged*"):
            left.unlink()

    def _staged(self, round_: int | None = None) -> Path:
        end = "" if round_ is None else f"-{round_}"
        return self._path.with_name(f"{self._path.name}.staged{end}")

    def _cut(self, rows: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        slot, start = self.slots[name], self._offsets[name]
        return rows[:, start : start + slot.elements].reshape(len(rows), *slot.shape)
