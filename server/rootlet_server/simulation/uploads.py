"""What leaves a chunk of clients: every update, their weighted sum, or a sum behind a bound.

Shape legend: K clients of a chunk, d values of an update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rootlet_server.errors import SimulationConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    Arrays = Mapping[str, npt.NDArray[Any]]

_ROUNDING_STREAM = 17


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """The arithmetic of secure aggregation; its masks cancel in a sum, and are not made.

    Each value v of an update is saturated at ``bound``, scaled to ``value_bits`` with sign,
    rounded up or down at random so that the mean is exact, and added modulo ``2^modulus_bits``:

        q = round(v (2^(value_bits - 1) - 1) / bound)        sum = sum_k q_k  mod 2^modulus_bits

    Attributes:
        value_bits: of one client's value.
        modulus_bits: of the sum.
        bound: where values saturate; None takes privacy's clipping norm.
        max_examples: weight at which a client's own saturates; without privacy an update counts
            ``min(n, max_examples) / max_examples``.

    Raises:
        SimulationConfigError: a value outside its bounds.
    """

    value_bits: int = 16
    modulus_bits: int = 32
    bound: float | None = None
    max_examples: int = 1000

    def __post_init__(self) -> None:
        if not 2 <= self.value_bits <= 24 or not self.value_bits < self.modulus_bits <= 48:
            raise SimulationConfigError(
                f"value_bits {self.value_bits}, modulus_bits {self.modulus_bits}: must be 2..24, "
                "and more than that up to 48"
            )
        if self.bound is not None and not (math.isfinite(self.bound) and self.bound > 0):
            raise SimulationConfigError(f"bound {self.bound}: must be positive and finite")
        if self.max_examples < 1:
            raise SimulationConfigError(f"max_examples {self.max_examples}: must be at least 1")

    @property
    def largest(self) -> int:
        """The largest quantised value."""
        return int(2 ** (self.value_bits - 1) - 1)

    def check_cohort(self, clients: int) -> None:
        """A sum of so many clients must not wrap around.

        Raises:
            SimulationConfigError: it would.
        """
        most = 2 ** (self.modulus_bits - 1) // self.largest
        if clients > most:
            raise SimulationConfigError(
                f"a cohort of {clients} at {self.value_bits} bits can exceed 2^"
                f"{self.modulus_bits}; at most {most} fit: raise modulus_bits or lower value_bits"
            )


@dataclass(frozen=True, kw_only=True)
class Upload:
    """How a chunk's updates are brought to the server.

    Attributes:
        partial: False for every client's adapter, True for sums.
        clipping_norm: bound on the norm of a client's whole update, then all clients weigh the
            same; None for no bound, and weights by examples.
        secure: None, or the quantised modular sum; its bound is filled in.
    """

    partial: bool
    clipping_norm: float | None = None
    secure: SecureAggregation | None = None


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Sums over clients.

    Attributes:
        values: float64 by name, of ``weight x adapter``, or of updates where these are clipped or
            quantised; int64 modulo the modulus under secure aggregation.
        weight: what they are divided by; an integer of the modular sum under secure aggregation.
        clients: how many are in it.
    """

    values: dict[str, npt.NDArray[Any]]
    weight: float
    clients: int

    def plus(self, other: Partial, secure: SecureAggregation | None) -> Partial:
        """Both together."""
        values = {name: value + other.values[name] for name, value in self.values.items()}
        weight = self.weight + other.weight
        if secure is not None:
            modulus = 2**secure.modulus_bits
            values = {name: value % modulus for name, value in values.items()}
            weight = int(weight) % modulus
        return Partial(values=values, weight=weight, clients=self.clients + other.clients)

    def mean(self, secure: SecureAggregation | None) -> dict[str, npt.NDArray[np.float64]]:
        """The mean adapter, or the mean update where updates were added, float64."""
        if secure is None:
            return {name: value / self.weight for name, value in self.values.items()}
        unit = (secure.bound or 1.0) / secure.largest
        weight = _signed(np.array(self.weight), secure) / secure.largest
        return {name: _signed(value, secure) * unit / weight for name, value in self.values.items()}


def _signed(value: npt.NDArray[np.int64], secure: SecureAggregation) -> npt.NDArray[np.float64]:
    half = 2 ** (secure.modulus_bits - 1)
    signed: npt.NDArray[np.float64] = np.where(
        value >= half, value - 2**secure.modulus_bits, value
    ).astype(np.float64)
    return signed


def sum_up(  # noqa: PLR0917 (one caller)
    upload: Upload,
    adapter: Mapping[str, Tensor],
    received: Arrays,
    examples: npt.NDArray[np.int64],
    keep: npt.NDArray[np.bool_],
    seeds: Sequence[int],
) -> Partial:
    """One chunk's part of the sum, in the order of the clients.

    Args:
        upload: how.
        adapter: trained, [K, ...] by name.
        received: what they started from.
        examples: [K].
        keep: [K], clients that count.
        seeds: of each client's rounding.
    """
    rows = torch.from_numpy(keep)
    stack = {name: value[rows].double() for name, value in adapter.items()}
    if upload.clipping_norm is None and upload.secure is None:
        w = torch.from_numpy(examples[keep]).double()
        totals = {
            name: (w @ value.flatten(1)).reshape(value.shape[1:]).numpy()
            for name, value in stack.items()
        }
        return Partial(values=totals, weight=float(w.sum()), clients=len(w))
    update = {
        name: value - torch.from_numpy(np.asarray(received[name], np.float64))
        for name, value in stack.items()
    }
    weights = torch.ones(int(keep.sum()), dtype=torch.float64)
    if upload.clipping_norm is not None:
        weights = clip_factors(update, upload.clipping_norm)
    elif upload.secure is not None:
        most = upload.secure.max_examples
        weights = torch.from_numpy(np.minimum(examples[keep], most) / most)
    update = {
        name: value * weights.reshape(-1, *[1] * (value.dim() - 1))
        for name, value in update.items()
    }
    if upload.secure is not None:
        own = np.ones(len(weights)) if upload.clipping_norm is not None else weights.numpy()
        kept = [seed for seed, wanted in zip(seeds, keep, strict=True) if wanted]
        return _modular(upload.secure, update, own, kept)
    totals = {name: value.sum(0).numpy() for name, value in update.items()}
    return Partial(values=totals, weight=float(len(weights)), clients=len(weights))


def clip_factors(update: Mapping[str, Tensor], norm: float) -> Tensor:
    """``min(1, C / ||u_k||)`` over all tensors of each update together, [K]."""
    squares = sum(value.flatten(1).square().sum(1) for value in update.values())
    return norm / torch.as_tensor(squares).sqrt().clamp_min(norm)


def _modular(
    secure: SecureAggregation,
    update: Mapping[str, Tensor],
    weights: npt.NDArray[np.float64],
    seeds: Sequence[int],
) -> Partial:
    modulus, bound = 2**secure.modulus_bits, secure.bound or 1.0
    totals = {name: np.zeros(value.shape[1:], np.int64) for name, value in update.items()}
    weight = 0
    for k, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, _ROUNDING_STREAM])
        for name, value in update.items():
            scaled = value[k].numpy().clip(-bound, bound) * (secure.largest / bound)
            low = np.floor(scaled)
            quantised = low.astype(np.int64) + (rng.random(scaled.shape) < scaled - low)
            totals[name] = (totals[name] + quantised) % modulus
        weight = (weight + round(float(weights[k]) * secure.largest)) % modulus
    return Partial(values=totals, weight=weight, clients=len(seeds))
