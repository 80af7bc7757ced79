"""FedAdagrad: the server steps by Adagrad (Reddi et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import positive

if TYPE_CHECKING:
    from rootlet_server.federation.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class FedAdagrad:
    """Takes the mean update as a gradient: with ``d = mean_k w_k - w``, weighted by examples.

        v <- v + d^2
        w <- w + eta d / (sqrt(v) + tau)

    Attributes:
        eta: the server's step size.
        tau: what a step is held down by where v is small.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    eta: float = 0.1
    tau: float = 1e-3

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        positive("tau", self.tau)

    def start(self, *, learning_rate: float) -> Strategy:
        """Without moments yet."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        flowers = strategy.FedAdagrad(eta=self.eta, tau=self.tau)
        return FlowerStrategy(flowers, kept=("m_t", "v_t"), of_updates=True)
