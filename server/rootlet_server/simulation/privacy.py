"""Central differential privacy of devices: every update clipped, Gaussian noise on their sum.

    mean = (sum_k min(1, C / ||u_k||) u_k + N(0, (z C')^2)) / (q N)       (McMahan et al. 2018)

The cohort is a Poisson sample: each of N clients with probability q, so that the accountant's
amplification holds, and the denominator is the expected cohort. C' is C and what the rounding of
secure aggregation can add. **Central** means that whoever adds the noise, the server or an enclave,
is trusted with the sum; and the noise here is of a seeded generator: it shows what privacy costs in
accuracy, and protects nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.errors import SimulationConfigError
from rootlet_server.privacy.accounting import epsilon, epsilon_by_rdp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from rootlet_server.simulation.uploads import Partial, SecureAggregation

    Arrays = Mapping[str, npt.NDArray[Any]]

_NOISE_STREAM = 19
MODEL = "central"
UNIT, NEIGHBOURS = "device", "add-or-remove-one"


@dataclass(frozen=True, kw_only=True)
class DevicePrivacy:
    """How devices are protected.

    Attributes:
        clipping_norm: C, the bound on the norm of a device's whole update.
        noise_multiplier: z, the noise's standard deviation over the sensitivity; 0 for clipping
            alone, which promises nothing.
        delta: of the epsilon that is reported; well below one over the number of devices.

    Raises:
        SimulationConfigError: a value outside its bounds.
    """

    clipping_norm: float
    noise_multiplier: float
    delta: float = 1e-6

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise SimulationConfigError(
                f"clipping_norm {self.clipping_norm}: must be positive and finite"
            )
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise SimulationConfigError(
                f"noise_multiplier {self.noise_multiplier}: must be at least 0 and finite"
            )
        if not 0 < self.delta < 1:
            raise SimulationConfigError(f"delta {self.delta}: must lie in 0..1; 1e-6 is usual")

    def sensitivity(self, values: int, secure: SecureAggregation | None) -> float:
        """How much one device can change the sum: C, and under secure aggregation its rounding.

        Rounding moves each of d values by less than one unit, the norm by less than ``sqrt(d)``.
        """
        if secure is None:
            return self.clipping_norm
        unit = self.clipping_norm / secure.largest
        return self.clipping_norm + math.sqrt(values) * unit

    def epsilon(self, rounds: int, sample_rate: float) -> float:
        """Epsilon of so many rounds at ``delta``, by privacy loss distributions; takes seconds.

        It is infinite without noise, and 0 before the first round.
        """
        return self._charged(rounds, sample_rate, epsilon)

    def epsilon_at_most(self, rounds: int, sample_rate: float) -> float:
        """The same by Renyi divergences: a looser bound, cheap enough for every round."""
        return self._charged(rounds, sample_rate, epsilon_by_rdp)

    def _charged(self, rounds: int, sample_rate: float, charge: Callable[..., float]) -> float:
        if self.noise_multiplier == 0:
            return math.inf
        if rounds == 0:
            return 0.0
        spent = PrivacySpent(
            steps=rounds,
            sample_rate=sample_rate,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.clipping_norm,
            unit=UNIT,
            neighbours=NEIGHBOURS,
        )
        return charge([spent], self.delta)


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Makes the server's view of a cohort of its sum: noise added, divided, on the old adapter.

    Attributes:
        privacy: None for no noise.
        secure: None, or the arithmetic in which the sum was made.
        expected: devices of a Poisson cohort on average; the denominator under privacy.
        seed: of the noise.
        round: counted from 1; noise is never drawn twice for one round.
    """

    privacy: DevicePrivacy | None
    secure: SecureAggregation | None
    expected: float
    seed: int
    round: int

    def __call__(self, total: Partial, received: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        """The adapter that the strategy gets as the one answer."""
        mean = total.mean(self.secure)
        if self.privacy is None:
            return {n: (received[n] + mean[n]).astype(np.float32) for n in received}
        values = sum(value.size for value in mean.values())
        scale = self.privacy.noise_multiplier * self.privacy.sensitivity(values, self.secure)
        rng = np.random.default_rng([self.seed, _NOISE_STREAM, self.round])
        result = {}
        for name, value in received.items():
            noisy = mean[name] * total.clients + scale * rng.standard_normal(value.shape)
            result[name] = (value + noisy / self.expected).astype(np.float32)
        return result
