"""What outlives a kill: after every round the adapter, the strategy's state, and all lines so far.

A state directory belongs to one simulation: its settings are part of the checkpoint's identity.
Random draws are functions of the seed and the round, so the rounds that are left come out as if
nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy

from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import SimulationStateError
from rootlet_server.simulation.result import (
    CLIENT_COLUMNS,
    ROUNDS_FILE,
    RoundRecord,
    clients_table,
    read_clients,
    read_rounds,
    rounds_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[Any]]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(kw_only=True)
class Position:
    """Where a simulation is.

    Attributes:
        round: the last finished one.
        now_s: virtual time.
        adapter: after it.
        strategy: its state, by ``strategies.state_of``.
        more: other arrays that go on with it.
    """

    round: int
    now_s: float
    adapter: dict[str, npt.NDArray[np.float32]]
    strategy: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    more: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


class Journal:
    """Lines in memory, and on disk where there is a folder.

    Args:
        folder: the state directory; None keeps nothing.
        identity: settings that must be the same for a simulation to go on.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.rounds: list[RoundRecord] = []
        self._folder = folder
        text = json.dumps(identity, sort_keys=True, default=str)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self._lines: list[dict[str, npt.NDArray[Any]]] = []

    @property
    def keeps(self) -> bool:
        """Whether rounds are kept on disk."""
        return self._folder is not None

    def resume(self) -> Position | None:
        """Where an earlier call was killed; None where there was none.

        Raises:
            SimulationStateError: the folder holds another simulation, or a damaged one.
        """
        if self._folder is None or not (self._folder / CHECKPOINT).exists():
            return None
        path = self._folder / CHECKPOINT
        try:
            with safetensors.safe_open(path, "np") as file:
                notes = json.loads((file.metadata() or {}).get("notes", "{}"))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise SimulationStateError(
                f"{path}: cannot be read ({error}); remove the state directory to begin anew"
            ) from error
        if notes.get("identity") != self._identity:
            raise SimulationStateError(
                f"{path}: belongs to a simulation with other settings; give another state "
                "directory, or remove this one"
            )
        finished = int(notes["round"])
        self.rounds = [r for r in read_rounds(self._folder / ROUNDS_FILE) if r.round <= finished]
        parts = [self._part(number) for number in range(1, finished + 1)]
        self._lines = [read_clients([part]) for part in parts if part.exists()]
        return Position(
            round=finished,
            now_s=float(notes["now_s"]),
            adapter=_under("adapter", arrays),
            strategy=_under("strategy", arrays),
            more=_under("more", arrays),
        )

    def clients(self, round_: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes the lines of some clients of a round."""
        count = len(columns["client"])
        self._lines.append({"round": np.full(count, round_), **columns})

    def finish(self, record: RoundRecord, position: Position) -> None:
        """A round is over: it is kept, all of it or nothing."""
        self.rounds.append(record)
        if self._folder is None:
            return
        mine = [each for each in self._lines if len(each["round"]) and
                each["round"][0] == record.round]  # fmt: skip
        if mine:
            path = self._part(record.round)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: pq.write_table(clients_table(_stacked(mine)), file))
        table = rounds_table(self.rounds)
        write_atomically(self._folder / ROUNDS_FILE, lambda file: pq.write_table(table, file))
        notes = {"identity": self._identity, "round": position.round, "now_s": position.now_s}
        groups = {
            "adapter": position.adapter, "strategy": position.strategy, "more": position.more,
        }  # fmt: skip
        arrays = {
            f"{group}|{name}": np.array(value, order="C")
            for group, own in groups.items()
            for name, value in own.items()
        }
        content = safetensors.numpy.save(arrays, metadata={"notes": json.dumps(notes)})
        write_atomically(self._folder / CHECKPOINT, content)

    def all_clients(self) -> dict[str, npt.NDArray[Any]]:
        """Every line so far."""
        return _stacked(self._lines)

    def _part(self, round_: int) -> Path:
        return (self._folder or Path()) / "clients" / f"round-{round_:06d}.parquet"


def _stacked(lines: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    if not lines:
        return {name: np.empty(0) for name in CLIENT_COLUMNS}
    return {name: np.concatenate([each[name] for each in lines]) for name in CLIENT_COLUMNS}


def _under(group: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    start = f"{group}|"
    return {n.removeprefix(start): value for n, value in arrays.items() if n.startswith(start)}
