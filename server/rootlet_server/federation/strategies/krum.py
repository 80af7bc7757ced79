"""Krum: the one answer that is nearest to the others (Blanchard et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import at_least

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Krum:
    """``w <- w_k`` of the k with the least sum of squared distances to its K - f - 2 nearest.

    Attributes:
        num_malicious: f, false answers that it shall withstand; the theorem needs K >= 2 f + 3.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    buffering: ClassVar[None] = None
    num_malicious: int = 1

    def __post_init__(self) -> None:
        at_least("num_malicious", self.num_malicious, 0)

    @property
    def least(self) -> int:
        """Answers that the theorem needs."""
        return 2 * self.num_malicious + 3

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        flowers = strategy.Krum(num_malicious_nodes=self.num_malicious)
        return FlowerStrategy(flowers, of_updates=True)
