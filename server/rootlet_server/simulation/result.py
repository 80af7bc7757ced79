"""What a simulation found: a line for each round, a line for each client of each round, a plot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

CLIENT_COLUMNS = (
    "round", "client", "status", "seconds", "examples", "steps", "loss", "metric", "received",
    "trained",
)  # fmt: skip
ROUNDS_FILE, CLIENTS_FILE = "rounds.parquet", "clients.parquet"


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round.

    Attributes:
        round: counted from 1; 0 is the adapter that the bundle ships.
        asked: clients that were asked.
        ok, empty, diverged, lost, late, unused: what became of them; see ``pace``.
        examples: that the answering clients trained on.
        loss: mean of theirs in their last epoch, weighted by examples; NaN where none answered.
        central_loss, central_metric: on held-out examples; NaN where there are none.
        epsilon: a bound on what is spent so far, by Renyi divergences; NaN without privacy. The
            tighter figure of the whole simulation is in ``SimulationResult.privacy``.
        bytes_down, bytes_up: of adapters on the wire.
        virtual_s: virtual time at the end of the round.
        seconds: of wall time.
    """

    round: int
    asked: int = 0
    ok: int = 0
    empty: int = 0
    diverged: int = 0
    lost: int = 0
    late: int = 0
    unused: int = 0
    examples: int = 0
    loss: float = math.nan
    central_loss: float = math.nan
    central_metric: float = math.nan
    epsilon: float = math.nan
    bytes_down: int = 0
    bytes_up: int = 0
    virtual_s: float = 0.0
    seconds: float = 0.0

    @property
    def clients_per_s(self) -> float:
        """Clients trained in a second of wall time."""
        return (self.ok + self.diverged) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulationResult:
    """What came out.

    Attributes:
        adapter: after the last round.
        rounds: one record each, round 0 first.
        clients: columns by name, one line for each client of each round; see ``CLIENT_COLUMNS``.
        chunk_size: clients trained at once.
        vectorised: whether they were; else one client after the other, by the device runtime.
        metric: ``accuracy`` or ``error``.
        privacy: the promise in words; empty without privacy.
    """

    adapter: dict[str, npt.NDArray[np.float32]]
    rounds: tuple[RoundRecord, ...]
    clients: Mapping[str, npt.NDArray[Any]]
    chunk_size: int
    vectorised: bool
    metric: str
    privacy: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def clients_per_s(self) -> float:
        """Over all rounds, whatever else they did included."""
        trained = sum(each.ok + each.diverged for each in self.rounds)
        seconds = sum(each.seconds for each in self.rounds)
        return trained / seconds if seconds else 0.0

    def hours_to(self, goal: float) -> float:
        """Virtual hours until the central metric first reached a goal; infinite if it did not."""
        for each in self.rounds:
            value = each.central_metric
            if value >= goal if self.metric == "accuracy" else value <= goal:
                return each.virtual_s / 3600
        return math.inf

    def to_parquet(self, folder: Path) -> tuple[Path, Path]:
        """Writes ``rounds.parquet`` and ``clients.parquet``."""
        folder.mkdir(parents=True, exist_ok=True)
        rounds, clients = folder / ROUNDS_FILE, folder / CLIENTS_FILE
        pq.write_table(rounds_table(self.rounds), rounds)
        pq.write_table(clients_table(self.clients), clients)
        return rounds, clients

    def plot(self, path: Path) -> Path:
        """Draws accuracy by round and by simulated hour, and its distribution over the clients."""
        from rootlet_server.simulation.plot import draw  # noqa: PLC0415 (matplotlib is slow)

        return draw(self, path)


def rounds_table(rounds: Sequence[RoundRecord]) -> pa.Table:
    """The records as columns."""
    names = [each.name for each in fields(RoundRecord)]
    return pa.table({name: [getattr(each, name) for each in rounds] for name in names})


def clients_table(columns: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    """The clients' columns, in their types."""
    types = {"round": pa.int32(), "client": pa.int64(), "status": pa.string()}
    return pa.table(
        {
            name: pa.array(columns[name], types.get(name, pa.float64()), from_pandas=True)
            for name in CLIENT_COLUMNS
        }
    )


def read_rounds(path: Path) -> tuple[RoundRecord, ...]:
    """What :func:`rounds_table` wrote."""
    return tuple(RoundRecord(**row) for row in pq.read_table(path).to_pylist())


def read_clients(paths: Sequence[Path]) -> dict[str, npt.NDArray[Any]]:
    """What :func:`clients_table` wrote, of several files together."""
    if not paths:
        return {name: np.empty(0) for name in CLIENT_COLUMNS}
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return {name: table[name].to_numpy(zero_copy_only=False) for name in CLIENT_COLUMNS}
