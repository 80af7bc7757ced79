"""The adapter after each round, saved so that a crash loses no finished round.

One safetensors file, replaced atomically; its metadata names the bundle and the round, so an
adapter can never be taken for another bundle's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import RoundCheckpointError

Adapter = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class RoundCheckpoint:
    """An adapter and the round that made it.

    Attributes:
        manifest_sha256: SHA-256 of the manifest of the bundle it belongs to, in hexadecimal.
        round: The round, 0 for the initial adapter.
        adapter: The tensors by name, float32.
    """

    manifest_sha256: str
    round: int
    adapter: Adapter

    def save(self, path: Path) -> None:
        """Write the checkpoint in the place of `path`."""
        metadata = {"manifest_sha256": self.manifest_sha256, "round": str(self.round)}
        content = save(
            {name: np.ascontiguousarray(a) for name, a in self.adapter.items()}, metadata
        )
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
                names = list(file.keys())
                adapter = {name: file.get_tensor(name) for name in names}
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
        return cls(manifest_sha256=found, round=round_, adapter=adapter)
