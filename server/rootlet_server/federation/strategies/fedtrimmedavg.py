"""Trimmed mean: each parameter without its extremes (Yin, Chen, Kannan & Bartlett 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import require

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedTrimmedAvg:
    """The mean of each parameter without the ``floor(beta K)`` largest and smallest of K answers.

    Devices do not weigh by examples. Up to that many false answers cannot move a parameter beyond
    what honest devices sent.

    Attributes:
        beta: share that is left out at each end, in (0, 0.5).

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    buffering: ClassVar[None] = None
    beta: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.beta < 0.5, "beta", self.beta, "above 0 and below 0.5")

    @property
    def least(self) -> int:
        """Answers of which at least one is left out at each end; fewer would be a plain mean."""
        least = math.ceil(1 / self.beta)
        return least if int(self.beta * least) >= 1 else least + 1  # as Flower rounds it

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        return FlowerStrategy(strategy.FedTrimmedAvg(beta=self.beta))
