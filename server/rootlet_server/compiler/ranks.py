"""How many directions each site gets: a fixed rank, or by explained variance under a byte budget.

With lambda_1 >= lambda_2 >= ... the eigenvalues of ``H^T H`` (H the site's inputs over the
calibration data, not centred), rank r explains ``f(r) = sum_{k <= r} lambda_k / sum_k lambda_k``.
Every site gets rank 1. Then one rank at a time goes to the site where it explains most per byte,

    (f(r + 1) - f(r)) / bytes of one more rank,

among the sites with ``f(r)`` still under the threshold, until the next one does not fit the budget.
The order does not depend on the budget, so a larger one never takes a rank away. As f is concave,
no other choice of the same bytes explains more, summed over the sites. Related: EVA (Paischer et
al. 2024), which counts ranks and not bytes.

Bytes are those of what learns and travels each round: float32 B (and A, where A learns), without
the head.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.errors import CompileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What one more rank of a site brings, and costs.

    Attributes:
        explained: f(1), f(2), ..., rising to 1; one entry for each direction the inputs have.
        rank_bytes: of one more rank.
    """

    explained: tuple[float, ...]
    rank_bytes: int

    @classmethod
    def of(cls, product: Tensor, rank_bytes: int) -> Spectrum:
        """From ``H^T H`` [in, in] in float64; eigenvalues that are rounding count for nothing."""
        values = torch.linalg.eigvalsh(product).flip(0).clamp_min(0)
        smallest = values[0] * len(values) * torch.finfo(values.dtype).eps
        values = values[values > smallest]
        if not len(values):  # inputs of zero: one direction, which is as good as any
            return cls(explained=(1.0,), rank_bytes=rank_bytes)
        explained = (values.cumsum(0) / values.sum()).clamp_max(1).tolist()
        return cls(explained=tuple(explained), rank_bytes=rank_bytes)

    def at(self, rank: int) -> float:
        """f(rank)."""
        return self.explained[min(rank, len(self)) - 1]

    def reaching(self, threshold: float) -> int:
        """The smallest rank that explains the threshold, or all there is."""
        return next((r for r, f in enumerate(self.explained, 1) if f >= threshold), len(self))

    def __len__(self) -> int:
        return len(self.explained)


@dataclass(frozen=True, kw_only=True)
class SiteRank:
    """What one adapted layer got.

    Attributes:
        module: its path.
        rank: rows of A.
        in_features: the most they could be.
        explained: share of its inputs' variance along the first ``rank`` directions; None where no
            directions were measured.
        trained_bytes: of what learns there and travels.
    """

    module: str
    rank: int
    in_features: int
    explained: float | None
    trained_bytes: int


def allocate(
    spectra: Mapping[str, Spectrum], threshold: float, budget_bytes: int | None = None
) -> dict[str, int]:
    """The rank of every site.

    Args:
        spectra: by site.
        threshold: the share of variance at which a site has enough, in (0, 1].
        budget_bytes: for all sites together; None is no bound.

    Raises:
        CompileError: rank 1 everywhere does not fit the budget.
    """
    enough = {name: spectrum.reaching(threshold) for name, spectrum in spectra.items()}
    if budget_bytes is None:
        return enough
    ranks = dict.fromkeys(spectra, 1)
    left = budget_bytes - sum(spectrum.rank_bytes for spectrum in spectra.values())
    if left < 0:
        raise CompileError(
            f"adapter_bytes={budget_bytes} is less than the {budget_bytes - left} bytes of rank 1 "
            f"at all {len(spectra)} sites. Raise it, or name fewer layers in target_modules."
        )

    def offer(position: int, name: str) -> tuple[float, int, str]:
        spectrum, rank = spectra[name], ranks[name]
        gain = spectrum.explained[rank] - spectrum.explained[rank - 1]
        return (-gain / spectrum.rank_bytes, position, name)

    offers = [offer(i, name) for i, name in enumerate(spectra) if ranks[name] < enough[name]]
    heapq.heapify(offers)
    while offers:
        _, position, name = heapq.heappop(offers)
        left -= spectra[name].rank_bytes
        if left < 0:
            break
        ranks[name] += 1
        if ranks[name] < enough[name]:
            heapq.heappush(offers, offer(position, name))
    return ranks
