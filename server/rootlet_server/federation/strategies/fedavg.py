"""FedAvg: the mean of the adapters, weighted by examples (McMahan et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedAvg:
    """``w <- sum_k n_k w_k / sum_k n_k`` with n_k the examples of device k.

    Where A is frozen and shared (calibrated adapters), the model's weights are linear in what
    learns, so the mean of the adapters *is* the adapter of the mean model:
    ``W + (mean_k B_k) A = mean_k (W + B_k A)``.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        return FlowerStrategy(strategy.FedAvg())
