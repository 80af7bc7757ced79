"""FedAdam: the server steps by Adam (Reddi et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import decay, positive

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedAdam:
    """Takes the mean update as a gradient: with ``d = mean_k w_k - w``, weighted by examples.

        m <- beta_1 m + (1 - beta_1) d
        v <- beta_2 v + (1 - beta_2) d^2
        w <- w + eta_t m / (sqrt(v) + tau)
        eta_t = eta sqrt(1 - beta_2^(t+1)) / (1 - beta_1^(t+1)) in round t (Kingma & Ba 2015)

    Attributes:
        eta: the server's step size.
        tau: what a step is held down by where v is small.
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    eta: float = 0.1
    tau: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.99

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        positive("tau", self.tau)
        decay("beta_1", self.beta_1)
        decay("beta_2", self.beta_2)

    def start(self, *, learning_rate: float) -> Strategy:
        """Without moments yet."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        flowers = strategy.FedAdam(
            eta=self.eta, tau=self.tau, beta_1=self.beta_1, beta_2=self.beta_2
        )
        return FlowerStrategy(flowers, kept=("m_t", "v_t"), of_updates=True)
