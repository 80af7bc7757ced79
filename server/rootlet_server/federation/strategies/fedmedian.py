"""FedMedian: the median of each parameter (Yin, Chen, Kannan & Bartlett 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedMedian:
    """``w_i <- median_k w_ki``, each parameter by itself; devices do not weigh by examples.

    Fewer than half of the answers, however false, cannot move a parameter beyond what honest
    devices sent. One or two answers have no majority, so a round takes three.
    """

    least: ClassVar[int] = 3
    buffering: ClassVar[None] = None

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        return FlowerStrategy(strategy.FedMedian())
