"""The adapter after each round, saved so that a crash loses no finished round.

One SQLite file for a state directory (write-ahead log, synchronous writes): a row a round, made in
one transaction, so a round is there with all that belongs to it or not at all. What the strategy
keeps from round to round (moments, say) lies beside the adapter: a server that was stopped goes on
with the same bits. The last rounds are kept, of every bundle apart. What was charged to a privacy
budget lies in the federation's ledger, which is written earlier, before a round begins.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rootlet_server.errors import RoundCheckpointError

Adapter = dict[str, np.ndarray]

KEPT_ROUNDS = 3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    manifest TEXT NOT NULL, round INTEGER NOT NULL, adapter BLOB NOT NULL,
    strategy TEXT NOT NULL, state BLOB NOT NULL, PRIMARY KEY (manifest, round)
)"""


@dataclass(frozen=True, kw_only=True)
class RoundCheckpoint:
    """An adapter, the round that made it, and what its strategy keeps.

    Attributes:
        manifest_sha256: SHA-256 of the manifest of the bundle it belongs to, in hexadecimal.
        round: The round, 0 for the initial adapter.
        adapter: The tensors by name, float32.
        strategy: The name of the strategy that made it; empty for the initial adapter.
        strategy_state: What the strategy keeps, by name.
    """

    manifest_sha256: str
    round: int
    adapter: Adapter
    strategy: str = ""
    strategy_state: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def next(
        self, adapter: Adapter, state: Mapping[str, npt.NDArray[Any]], strategy: str
    ) -> "RoundCheckpoint":
        """The checkpoint of the round after this."""
        return RoundCheckpoint(
            manifest_sha256=self.manifest_sha256,
            round=self.round + 1,
            adapter=adapter,
            strategy=strategy,
            strategy_state=dict(state),
        )

    def require_strategy(self, name: str, path: Path) -> None:
        """Refuse to go on with another strategy where the last one kept something.

        Raises:
            RoundCheckpointError: names both, and the remedy.
        """
        if self.strategy_state and self.strategy != name:
            raise RoundCheckpointError(
                f"{path} holds round {self.round} and the state of strategy {self.strategy}, which "
                f"{name} cannot use; go on with --strategy {self.strategy}, or move the file away "
                "to start from round 1"
            )

    def save(self, path: Path) -> None:
        """Add the round to the database at `path`, made if absent; a round of the same number goes.

        Raises:
            RoundCheckpointError: the database is damaged, or the disk refuses it; the rounds of
                before are as they were.
        """
        row = (
            self.manifest_sha256, self.round, _packed(self.adapter), self.strategy,
            _packed(self.strategy_state),
        )  # fmt: skip
        with _database(path) as rounds:
            rounds.execute("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?)", row)
            rounds.execute(
                "DELETE FROM rounds WHERE manifest = ? AND (round > ? OR round <= ?)",
                (self.manifest_sha256, self.round, self.round - KEPT_ROUNDS),
            )

    @classmethod
    def exists(cls, path: Path, *, manifest_sha256: str) -> bool:
        """Whether a bundle has a finished round, or a beginning, to go on from.

        Raises:
            RoundCheckpointError: the database is damaged.
        """
        return path.exists() and _last(path, manifest_sha256) is not None

    @classmethod
    def load(cls, path: Path, *, manifest_sha256: str) -> "RoundCheckpoint":
        """Read the last round of a bundle.

        Raises:
            RoundCheckpointError: the database is absent or damaged, or has none of this bundle.
        """
        row = _last(path, manifest_sha256) if path.exists() else None
        if row is None:
            raise RoundCheckpointError(
                f"{path} has no round of the bundle with manifest {manifest_sha256[:16]}…; start "
                "from round 1, or use the --state-dir of its federation"
            )
        try:
            adapter, state = _unpacked(row[1]), _unpacked(row[3])
        except (SafetensorError, ValueError) as error:
            raise _damaged(path, error) from None
        return cls(
            manifest_sha256=manifest_sha256,
            round=int(row[0]),
            adapter=adapter,
            strategy=str(row[2]),
            strategy_state=state,
        )

    @staticmethod
    def forget(path: Path, *, manifest_sha256: str) -> None:
        """Remove the rounds of a bundle: they were published.

        Raises:
            RoundCheckpointError: the database is damaged, or the disk refuses.
        """
        with _database(path) as rounds:
            rounds.execute("DELETE FROM rounds WHERE manifest = ?", (manifest_sha256,))


def _packed(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    # ascontiguousarray would give a number an axis
    return save({name: np.array(value, order="C") for name, value in tensors.items()})


def _unpacked(content: bytes) -> dict[str, npt.NDArray[Any]]:
    found = load(content)  # in no order that is the same twice
    return {name: found[name] for name in sorted(found)}


def _last(path: Path, manifest_sha256: str) -> tuple[Any, ...] | None:
    query = (
        "SELECT round, adapter, strategy, state FROM rounds WHERE manifest = ? "
        "ORDER BY round DESC LIMIT 1"
    )
    with _database(path) as rounds:
        found: tuple[Any, ...] | None = rounds.execute(query, (manifest_sha256,)).fetchone()
    return found


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction; it is in the file, past a power cut, when this ends without an error."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            with connection:
                connection.execute(_SCHEMA)
                yield connection
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RoundCheckpointError:
    return RoundCheckpointError(
        f"{path} cannot be used as the federation's checkpoints ({error}); free some space, or "
        "move it away to start from round 1"
    )
