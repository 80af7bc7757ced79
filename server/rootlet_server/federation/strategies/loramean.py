"""LoRA-aware mean: the mean of the products B A, brought back to the rank of the adapter.

Where A learns too, the mean of the A's times the mean of the B's is not the mean of the models:

    sum_k p_k B_k A_k - (sum_k p_k B_k) (sum_k p_k A_k) = sum_k p_k (B_k - B) (A_k - A)

with p_k the weights and A, B the means. Here the products are averaged, ``M = sum_k p_k B_k A_k``,
and A and B become the nearest pair of rank r in the Frobenius norm: the r leading singular values
of M (Eckart & Young 1936). M is never formed: with B' = [p_1 B_1 … p_K B_K] = Q_b R_b and
A' = [A_1; …; A_K] = (Q_a R_a)^T,

    M = B' A' = Q_b (R_b R_a^T) Q_a^T,   R_b R_a^T = P S V^T, a small matrix

What is lost is exactly the singular values beyond r; the mean of K products has rank up to K r.
(FLoRA, Wang et al. 2024, stacks the factors and lets the rank grow; FedEx-LoRA, Singhal et al.
2024, adds the rest to the base, which a signed bundle does not let anybody change.)

Any invertible T gives the same product from ``B = Q_b P_r S_r T^-1``, ``A = T V_r^T Q_a^T``, and
not the same training: a step of A is as long as B is large. T = c O here, O the orthogonal matrix
that brings A nearest to the plain mean of the A's, and c the mean length of that mean's rows. So
the rows of A become orthogonal and keep their length. (With the mean of the A's itself as T, the
benchmark diverged: what the devices' A's do not share gets a small T, and then a large B.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from rootlet_server.federation.checkpoint import Adapter
    from rootlet_server.federation.strategies.strategy import State, Strategy, Update

    Matrix = npt.NDArray[np.float64]

LORA_A, LORA_B = ".lora_A", ".lora_B"


@dataclass(frozen=True, kw_only=True)
class LoraMean:
    """Averages ``B A`` of each module by examples; everything else as FedAvg does.

    A bundle whose A is frozen has no such pairs: there it is FedAvg, which is exact.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        return _ProductMean()


class _ProductMean:
    train_options: ClassVar[Mapping[str, float]] = {}

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        weights = np.array([each.num_examples for each in updates], np.float64)
        weights /= weights.sum()
        found = {name: np.tensordot(weights, _stacked(updates, name), axes=1) for name in received}
        for name in received:
            module = name.removesuffix(LORA_A)
            if name.endswith(LORA_A) and module + LORA_B in received:
                a_KRI, b_KOR = _stacked(updates, name), _stacked(updates, module + LORA_B)
                found[name], found[module + LORA_B] = mean_product(a_KRI, b_KOR, weights)
        return {name: value.astype(np.float32) for name, value in found.items()}

    def state(self) -> State:
        return {}

    def restore(self, state: State, received: Adapter) -> None:
        """Nothing is kept."""


def mean_product(a_KRI: Matrix, b_KOR: Matrix, weights: Matrix) -> tuple[Matrix, Matrix]:
    """A and B whose product is nearest to the weighted mean of the products.

    Args:
        a_KRI: the A's, [K, rank, in].
        b_KOR: the B's, [K, out, rank].
        weights: [K], summing to 1.

    Returns:
        A [rank, in] and B [out, rank].
    """
    count, rank, fan_in = a_KRI.shape
    b_OS = (weights[:, None, None] * b_KOR).transpose(1, 0, 2).reshape(-1, count * rank)
    q_b, r_b = np.linalg.qr(b_OS)
    q_a, r_a = np.linalg.qr(a_KRI.reshape(count * rank, fan_in).T)
    p, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    keep = min(rank, len(s))  # fewer than the rank in a layer that is narrower than it
    v_IR, u_OR = q_a @ vt[:keep].T, q_b @ p[:, :keep]
    mean_a = np.tensordot(weights, a_KRI, axes=1)
    length = float(np.linalg.norm(mean_a)) / math.sqrt(rank) or 1.0
    x, _, yt = np.linalg.svd(mean_a @ v_IR, full_matrices=False)
    o_RR = x @ yt
    return length * o_RR @ v_IR.T, (u_OR * s[:keep]) @ o_RR.T / length


def _stacked(updates: Sequence[Update], name: str) -> Matrix:
    return np.stack([each.trained[name] for each in updates]).astype(np.float64)
