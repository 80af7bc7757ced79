"""FedAvgM: averaging with momentum on the server (Hsu, Qi & Brown 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import decay, positive

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedAvgM:
    """``v <- momentum v + (w - mean_k w_k)``, ``w <- w - server_learning_rate v``.

    Attributes:
        server_learning_rate: of the server's step; 1 with no momentum is FedAvg.
        momentum: share of the last step that goes on, in [0, 1).

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    server_learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        positive("server_learning_rate", self.server_learning_rate)
        decay("momentum", self.momentum)

    def start(self, *, learning_rate: float) -> Strategy:
        """Without momentum yet."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        flowers = strategy.FedAvgM(
            server_learning_rate=self.server_learning_rate, server_momentum=self.momentum
        )
        return FlowerStrategy(flowers, kept=("momentum_vector",))
