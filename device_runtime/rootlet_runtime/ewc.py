"""Elastic weight consolidation (Kirkpatrick et al. 2017), online (Schwarz et al. 2018).

The penalty ``(strength / 2) sum_i F_i (p_i - anchor_i)^2`` keeps a parameter near the value that
earlier tasks left it, the more so the larger its Fisher information F. It is applied after each
step of whatever optimiser the graph holds, as the exact minimiser of
``(1/2)|p - p'|^2 + learning_rate * penalty``,

    p = anchor + (p' - anchor) / (1 + learning_rate strength F)

a proximal step: no strength makes it diverge, it needs no place in the graph, and an adaptive
optimiser does not rescale it. F is the mean square of per-example gradients of the loss; a rule
that assigns credit without backpropagation gives its own gradients for it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import TensorSpec
from rootlet_runtime.tensors import Array, Arrays, check_arrays

_FISHER, _ANCHOR = "fisher/", "anchor/"


@dataclass(frozen=True, kw_only=True)
class ElasticWeights:
    """What holds the adapter back.

    Attributes:
        fisher: F by name, of the adapter's shapes, none below 0.
        anchor: where the parameters are pulled to.
        strength: lambda.

    Raises:
        DataError: a negative strength.
    """

    fisher: Arrays
    anchor: Arrays
    strength: float

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise DataError(f"strength {self.strength}: must be at least 0")

    def pulled(self, adapter: Arrays, learning_rate: float) -> Arrays:
        """The adapter after the proximal step."""
        return {
            name: _pull(value, self.anchor[name], self.fisher[name], learning_rate * self.strength)
            for name, value in adapter.items()
        }

    def digest(self) -> str:
        """SHA-256 (hex) of all of it: a resumed ``fit`` must have the same."""
        digest = hashlib.sha256(repr(self.strength).encode())
        for arrays in (self.fisher, self.anchor):
            for name, array in sorted(arrays.items()):
                digest.update(f"|{name}{array.shape}|".encode() + array.tobytes())
        return digest.hexdigest()

    def penalty(self, adapter: Arrays) -> float:
        """``(strength / 2) sum_i F_i (p_i - anchor_i)^2``."""
        total = sum(
            float((self.fisher[name] * np.square(value - self.anchor[name])).sum(dtype=np.float64))
            for name, value in adapter.items()
        )
        return self.strength / 2 * total


def _pull(value: Array, anchor: Array, fisher: Array, rate: float) -> Array:
    return anchor + (value - anchor) / (1 + np.float32(rate) * fisher)


def diagonal_fisher(gradients: Iterable[Arrays]) -> Arrays:
    """The mean square of per-example gradients, by name.

    Args:
        gradients: one example's gradient of the loss each.

    Raises:
        DataError: there is none.
    """
    total: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    count = 0
    for by_name in gradients:
        count += 1
        for name, gradient in by_name.items():
            square = np.square(gradient.astype(np.float64))
            total[name] = total[name] + square if name in total else square
    if not count:
        raise DataError("no gradients: the Fisher information needs at least one example")
    return {name: (value / count).astype(np.float32) for name, value in total.items()}


def consolidated(
    earlier: ElasticWeights | None,
    fisher: Arrays,
    adapter: Arrays,
    *,
    strength: float,
    decay: float = 1.0,
) -> ElasticWeights:
    """After a task: ``F <- decay F + F_task``, and the anchor moves to the adapter as it is now.

    Raises:
        DataError: ``decay`` is not in [0, 1].
    """
    if not 0 <= decay <= 1:
        raise DataError(f"decay {decay}: must lie in 0..1")
    if earlier is not None:
        fisher = {
            name: np.float32(decay) * earlier.fisher[name] + value for name, value in fisher.items()
        }
    return ElasticWeights(fisher=fisher, anchor=adapter, strength=strength)


def save(weights: ElasticWeights, files: ArrayFiles, name: str) -> None:
    """Writes them; a crash leaves the old file or the new one.

    Raises:
        CheckpointError: the disk refused.
    """
    arrays = {_FISHER + key: value for key, value in weights.fisher.items()}
    arrays |= {_ANCHOR + key: value for key, value in weights.anchor.items()}
    files.write(name, arrays, {"strength": weights.strength})


def restore(files: ArrayFiles, name: str, specs: Iterable[TensorSpec]) -> ElasticWeights | None:
    """What ``save`` wrote; ``None`` where there is nothing.

    Raises:
        AdapterError: of another bundle.
        CheckpointError: damaged.
    """
    found = files.read(name)
    if found is None:
        return None
    specs = tuple(specs)
    arrays, notes = found
    parts = {
        prefix: check_arrays(
            {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}, specs
        )
        for prefix in (_FISHER, _ANCHOR)
    }
    return ElasticWeights(
        fisher=parts[_FISHER], anchor=parts[_ANCHOR], strength=float(notes["strength"])
    )
