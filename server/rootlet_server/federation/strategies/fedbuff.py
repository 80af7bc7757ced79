"""FedBuff: buffered asynchronous aggregation, weighted by staleness (Nguyen et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rootlet_server.federation.strategies.options import at_least, positive
from rootlet_server.federation.strategies.strategy import Buffering

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rootlet_server.federation.checkpoint import Adapter
    from rootlet_server.federation.strategies.strategy import State, Strategy, Update


@dataclass(frozen=True, kw_only=True)
class FedBuff:
    """Devices train all the time; every ``buffer_size`` answers make a version.

        w <- w + server_learning_rate sum_k n_k s(t_k) d_k / sum_k n_k,  s(t) = 1 / sqrt(1 + t)

    d_k is trained minus received, against the version that device k received, and t_k the versions
    made since. (The paper's devices all weigh the same; here they weigh by examples, as in FedAvg
    and in the simulation.) A round is a version; `cohort_size` devices train at once, or all.

    Attributes:
        buffer_size: answers that make a version.
        max_staleness: an answer that is older, in versions, is left out.
        server_learning_rate: of the server's step.

    Raises:
        ServeConfigError: a value outside its bounds.
    """

    least: ClassVar[int] = 1
    buffer_size: int = 2
    max_staleness: int = 10
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        at_least("buffer_size", self.buffer_size, 1)
        at_least("max_staleness", self.max_staleness, 0)
        positive("server_learning_rate", self.server_learning_rate)

    @property
    def buffering(self) -> Buffering:
        """How rounds run."""
        return Buffering(size=self.buffer_size, max_staleness=self.max_staleness)

    def start(self, *, learning_rate: float) -> Strategy:
        """Without history; it keeps none."""
        return _StaleMean(self.server_learning_rate)


class _StaleMean:
    """The mean of the updates, each times ``1 / sqrt(1 + staleness)``."""

    train_options: ClassVar[Mapping[str, float]] = {}

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        total = sum(each.num_examples for each in updates)
        shares = [
            self._rate * each.num_examples / total / math.sqrt(1 + each.staleness)
            for each in updates
        ]
        changes = [each.change() for each in updates]
        return {
            name: np.asarray(
                value
                + sum(
                    np.float32(share) * change[name]
                    for share, change in zip(shares, changes, strict=True)
                ),
                np.float32,
            )
            for name, value in received.items()
        }

    def state(self) -> State:
        return {}

    def restore(self, state: State, received: Adapter) -> None:
        """Nothing is kept."""
