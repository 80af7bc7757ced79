"""FedProx: FedAvg, and devices that are held near what they received (Li et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import require

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedProx:
    """Each device minimises ``F_k(w) + (proximal_mu / 2) |w - w_received|^2``.

    The device takes the second term after every step of its optimiser, as the exact minimiser of
    ``(1/2)|w - w'|^2 + learning_rate (proximal_mu / 2) |w - w_received|^2``,

        w = w_received + (w' - w_received) / (1 + learning_rate proximal_mu)

    (forward-backward splitting; for SGD it agrees with the gradient of the sum to first order in
    the learning rate, and no ``proximal_mu`` makes it diverge). The server averages as FedAvg does.

    Attributes:
        proximal_mu: how strongly; 0 is FedAvg.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    proximal_mu: float = 0.01

    def __post_init__(self) -> None:
        mu = self.proximal_mu
        require(math.isfinite(mu) and 0 <= mu <= 1e6, "proximal_mu", mu, "0 to 1e6")

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        options = {"proximal_mu": self.proximal_mu} if self.proximal_mu else {}
        return FlowerStrategy(strategy.FedAvg(), train_options=options)
