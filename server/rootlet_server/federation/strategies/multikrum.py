"""Multi-Krum: the mean of the answers that are nearest to the others (Blanchard et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import at_least

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class MultiKrum:
    """The mean, weighted by examples, of the ``num_selected`` answers with Krum's least scores.

    Attributes:
        num_malicious: f, false answers that it shall withstand; the theorem needs K >= 2 f + 3.
        num_selected: m, answers that are averaged, at most K - f - 2; 0 for f + 1, which is that
            of the fewest answers allowed. 1 is Krum.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    buffering: ClassVar[None] = None
    num_malicious: int = 1
    num_selected: int = 0

    def __post_init__(self) -> None:
        at_least("num_malicious", self.num_malicious, 0)
        at_least("num_selected", self.num_selected, 0)

    @property
    def selected(self) -> int:
        """Answers that are averaged."""
        return self.num_selected or self.num_malicious + 1

    @property
    def least(self) -> int:
        """Answers that the theorem needs, and of which that many are not suspect."""
        return max(2 * self.num_malicious + 3, self.selected + self.num_malicious + 2)

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        flowers = strategy.MultiKrum(
            num_malicious_nodes=self.num_malicious, num_nodes_to_select=self.selected
        )
        return FlowerStrategy(flowers, of_updates=True)
