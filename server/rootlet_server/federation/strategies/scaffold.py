"""SCAFFOLD: devices whose drift is corrected by control variates (Karimireddy et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rootlet_server.errors import AggregationError
from rootlet_server.federation.strategies.options import positive, require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rootlet_server.federation.checkpoint import Adapter
    from rootlet_server.federation.strategies.strategy import State, Strategy, Update


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """Algorithm 1, option II, over N devices of which S answered; all weigh alike.

        w <- w + eta mean_S(w_k - w)
        c <- c + (1 / N) sum_S (c_k+ - c_k)

    A device corrects each step of plain SGD by ``c_k - c`` and keeps c_k (`rootlet.controls`), so
    devices with data of their own kind do not pull apart. It costs the adapter's size once more in
    each direction, and needs devices that remember.

    Attributes:
        devices: N, how many there are in the federation.
        eta: the server's step size.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffering: ClassVar[None] = None
    devices: int = 0
    eta: float = 1.0

    def __post_init__(self) -> None:
        require(self.devices >= 1, "devices", self.devices, "at least 1: all of the federation's")
        positive("eta", self.eta)

    def start(self, *, learning_rate: float) -> Strategy:
        """With a mean control variate of zero."""
        return _Scaffold(self)


class _Scaffold:
    def __init__(self, settings: Scaffold) -> None:
        self._settings = settings
        self._mean: Adapter = {}

    @property
    def train_options(self) -> Mapping[str, Any]:
        """c, for the devices; what is missing at first is zero."""
        return {"control": self._mean}

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        """Both steps, in float64.

        Raises:
            AggregationError: an answer brings no control variate.
        """
        mean = self._mean or {name: np.zeros_like(value) for name, value in received.items()}
        moved, control = {}, {}
        for name, value in received.items():
            changes, drifts = [], []
            for update in updates:
                if update.control is None:
                    raise AggregationError(f"node {update.node} sent no control variate")
                changes.append(update.trained[name].astype(np.float64) - value)
                drifts.append(update.control[name].astype(np.float64))
            step = self._settings.eta * np.mean(changes, axis=0)
            moved[name] = (value + step).astype(np.float32)
            drift = np.sum(drifts, axis=0) / self._settings.devices
            control[name] = (mean[name] + drift).astype(np.float32)
        self._mean = control
        return moved

    def state(self) -> State:
        """C by name."""
        return dict(self._mean)

    def restore(self, state: State, received: Adapter) -> None:
        """Takes up c."""
        self._mean = {name: np.asarray(state[name]) for name in received if name in state}
