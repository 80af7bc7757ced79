"""q-FedAvg: devices with a larger loss count for more (Li, Sanjabi, Beirami & Smith 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rootlet_server.federation.strategies.options import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rootlet_server.federation.checkpoint import Adapter
    from rootlet_server.federation.strategies.strategy import State, Strategy, Update

MOST_LOSS = 1e3
"""A device's loss counts for no more: it is the device's own word."""


@dataclass(frozen=True, kw_only=True)
class QFedAvg:
    """``w <- w - sum_k d_k / sum_k h_k`` with L = 1 / the devices' learning rate.

        g_k = L (w - w_k),  d_k = F_k^q g_k,  h_k = q F_k^(q-1) |g_k|^2 + L F_k^q

    F_k is the loss that a device reports, its mean over the last epoch (the paper has the loss of
    the adapter that it received, which one epoch of small steps is near), cut to 0..1000. Devices
    do not weigh by their examples. A device that lies about its loss weighs as it likes within
    that bound: this is fairness among honest devices, not robustness.

    Attributes:
        q: 0 is the plain mean; the larger, the more the worst-off devices count.
        client_learning_rate: for L; 0 takes what devices are told.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    q: float = 0.1
    client_learning_rate: float = 0.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.q) and 0 <= self.q <= 100, "q", self.q, "0 to 100")
        rate = self.client_learning_rate
        require(math.isfinite(rate) and rate >= 0, "client_learning_rate", rate, "at least 0")

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        from flwr.serverapp import strategy  # noqa: PLC0415

        from rootlet_server.federation.strategies.flower import FlowerStrategy  # noqa: PLC0415

        rate = self.client_learning_rate or learning_rate
        flowers = strategy.QFedAvg(client_learning_rate=rate, q=self.q, train_loss_key="loss")
        return _BoundedLoss(FlowerStrategy(flowers))


class _BoundedLoss:
    """Cuts losses to what powers of them can take."""

    def __init__(self, inner: Strategy) -> None:
        self._inner = inner

    @property
    def train_options(self) -> Mapping[str, float]:
        return self._inner.train_options

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        bounded = [replace(each, loss=min(max(each.loss, 0.0), MOST_LOSS)) for each in updates]
        return self._inner.aggregate(round_, received, bounded)

    def state(self) -> State:
        return self._inner.state()

    def restore(self, state: State, received: Adapter) -> None:
        self._inner.restore(state, received)
