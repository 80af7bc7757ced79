"""What training changes, as one value."""

from dataclasses import dataclass
from hashlib import sha256

from rootlet_runtime.tensors import Arrays


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Adapter and optimiser arrays by name, and the steps since the optimiser was reset."""

    adapter: Arrays
    optimizer: Arrays
    steps: int = 0

    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes, bytes and the step: equal states, equal digests."""
        digest = sha256(str(self.steps).encode())
        for arrays in (self.adapter, self.optimizer):
            for name, array in arrays.items():
                digest.update(f"|{name}{array.shape}|".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()
