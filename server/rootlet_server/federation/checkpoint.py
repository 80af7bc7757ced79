"""The adapter after each round, saved so that a crash loses no finished round.

One safetensors file, replaced atomically; its metadata names the bundle, the round and the
strategy, so an adapter can never be taken for another bundle's. What the strategy keeps from round
to round (moments, say) lies beside the adapter: a server that was stopped goes on with the same
bits. Tensors are named `adapter:NAME` and `strategy:NAME`; files of before there were strategies
have plain names, and are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import RoundCheckpointError

Adapter = dict[str, np.ndarray]

_ADAPTER, _STRATEGY = "adapter:", "strategy:"


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
        """Write the checkpoint in the place of `path`."""
        metadata = {
            "manifest_sha256": self.manifest_sha256,
            "round": str(self.round),
            "strategy": self.strategy,
        }
        tensors = {_ADAPTER + name: value for name, value in self.adapter.items()}
        tensors |= {_STRATEGY + name: value for name, value in self.strategy_state.items()}
        # ascontiguousarray would give a number an axis
        content = save({name: np.array(a, order="C") for name, a in tensors.items()}, metadata)
        write_atomically(path, content)

    @classmethod
    def load(cls, path: Path, *, manifest_sha256: str) -> "RoundCheckpoint":
        """Read the checkpoint of a bundle.

        Raises:
            RoundCheckpointError: the file is damaged, or belongs to another bundle.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found, round_ = metadata["manifest_sha256"], int(metadata["round"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RoundCheckpointError(
                f"{path} is not a round checkpoint ({error}); move it away to start from round 1"
            ) from None
        if found != manifest_sha256:
            raise RoundCheckpointError(
                f"{path} belongs to the bundle with manifest {found[:16]}…, not "
                f"{manifest_sha256[:16]}…; use another --state-dir, or move it away"
            )
        kept = {n.removeprefix(_STRATEGY): a for n, a in tensors.items() if n.startswith(_STRATEGY)}
        adapter = {
            name.removeprefix(_ADAPTER): value
            for name, value in tensors.items()
            if not name.startswith(_STRATEGY)
        }
        return cls(
            manifest_sha256=found,
            round=round_,
            adapter=adapter,
            strategy=metadata.get("strategy", ""),
            strategy_state=kept,
        )
