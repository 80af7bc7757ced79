"""How long clients take, and which of them fail: device speed and network, in virtual time.

A round of a client takes

    overhead + bytes_down / down + examples / speed + bytes_up / up      seconds

with its own speed and bandwidths, log-normal over the clients: a median and a spread, the factor by
which one standard deviation differs from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import draws

if TYPE_CHECKING:
    import numpy.typing as npt

    Clients = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

_SPEED, _DOWN, _UP, _JITTER, _FAIL = 21, 22, 23, 24, 25


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Distributions of a fleet.

    Attributes:
        examples_per_s: median speed of training, examples a second.
        speed_spread: 1 for equal devices; 2 is a fleet of mixed phones.
        down_bytes_per_s, up_bytes_per_s: median bandwidths.
        network_spread: of both.
        overhead_s: of every round: waking, connecting, loading.
        jitter_spread: of a round's whole time, drawn anew each round.
        failure_rate: probability with which a client is lost during a round.
        seed: of the draws.

    Raises:
        SimulationConfigError: a value outside its bounds.
    """

    examples_per_s: float = 200.0
    speed_spread: float = 2.0
    down_bytes_per_s: float = 1e6
    up_bytes_per_s: float = 2.5e5
    network_spread: float = 3.0
    overhead_s: float = 2.0
    jitter_spread: float = 1.2
    failure_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("examples_per_s", "down_bytes_per_s", "up_bytes_per_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise SimulationConfigError(f"{name} {value}: must be positive and finite")
        for name in ("speed_spread", "network_spread", "jitter_spread"):
            if not 1 <= getattr(self, name) < math.inf:
                raise SimulationConfigError(f"{name} {getattr(self, name)}: must be at least 1")
        if not 0 <= self.failure_rate < 1 or not 0 <= self.overhead_s < math.inf:
            raise SimulationConfigError(
                f"failure_rate {self.failure_rate} must lie in 0..1 and overhead_s "
                f"{self.overhead_s} be at least 0"
            )

    def seconds(
        self, clients: Clients, examples: Floats, bytes_down: int, bytes_up: int, round_: int
    ) -> Floats:
        """How long each client's round takes, [n].

        Args:
            clients: their numbers.
            examples: that each one trains on, all epochs together.
            bytes_down: of the adapter and its envelope.
            bytes_up: the same, back.
            round_: the round, for what is drawn anew.
        """

        def spread(stream: int, factor: float) -> Floats:
            return np.exp(math.log(factor) * draws.normal(clients, self.seed, stream))

        network = bytes_down / (self.down_bytes_per_s * spread(_DOWN, self.network_spread))
        network += bytes_up / (self.up_bytes_per_s * spread(_UP, self.network_spread))
        training = examples / (self.examples_per_s * spread(_SPEED, self.speed_spread))
        jitter = draws.normal(clients, self.seed, _JITTER, round_)
        whole: Floats = self.overhead_s + network + training
        return whole * np.exp(math.log(self.jitter_spread) * jitter)

    def fails(self, clients: Clients, round_: int) -> npt.NDArray[np.bool_]:
        """Which clients are lost in this round."""
        lost: npt.NDArray[np.bool_] = (
            draws.uniform(clients, self.seed, _FAIL, round_) < self.failure_rate
        )
        return lost
