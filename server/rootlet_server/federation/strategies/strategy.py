"""What a strategy is: how the answers of a round become the next adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from rootlet_server.federation.checkpoint import Adapter

    State = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """One device's checked answer.

    Attributes:
        node: who answered.
        received: the adapter that it was sent, of an earlier round where it is stale.
        trained: the adapter that it made of it, float32, in the same order.
        num_examples: its weight.
        loss: its mean loss over the last epoch.
        staleness: rounds finished since it was asked; 0 where all wait for each other.
        control: what changed in its control variate, where the strategy asks for it.
    """

    node: int
    received: Adapter
    trained: Adapter
    num_examples: int
    loss: float
    staleness: int = 0
    control: Adapter | None = None

    def change(self) -> dict[str, npt.NDArray[np.float32]]:
        """Trained minus received."""
        return {name: value - self.received[name] for name, value in self.trained.items()}


@dataclass(frozen=True, kw_only=True)
class Buffering:
    """How rounds run where devices do not wait for each other.

    Attributes:
        size: answers that make a round; fewer devices would never fill it, for none is asked twice
            for one version.
        max_staleness: an answer that is older, in rounds, is left out.
    """

    size: int
    max_staleness: int


class Strategy(Protocol):
    """Makes the next adapter, and keeps what it needs from round to round."""

    @property
    def train_options(self) -> Mapping[str, Any]:
        """Fields of `TrainRequest` that devices must be told beside the usual ones."""

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        """The next adapter.

        Args:
            round_: from 1.
            received: the adapter of the round before.
            updates: at least one, and at least the settings' `least`.

        Returns:
            Tensors in the order of `received`, float32.
        """

    def state(self) -> State:
        """What it keeps, by name."""

    def restore(self, state: State, received: Adapter) -> None:
        """Takes up what :meth:`state` gave; `received` is the adapter saved beside it."""


class Settings(Protocol):
    """A strategy's options: a frozen dataclass that checks itself, one for each name."""

    @property
    def least(self) -> int:
        """Answers below which it makes no sense: such a round is repeated."""

    @property
    def buffering(self) -> Buffering | None:
        """How rounds run where devices do not wait for each other; None where they do."""

    def start(self, *, learning_rate: float) -> Strategy:
        """The strategy without any history; `learning_rate` is the devices'."""
