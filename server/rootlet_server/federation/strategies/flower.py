"""One of Flower's strategies as ours: Flower does the mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.fedopt import FedOpt

from rootlet_server.errors import AggregationError
from rootlet_server.flower_state import restore, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flwr.serverapp.strategy import Strategy as FlowersStrategy

    from rootlet_server.federation.checkpoint import Adapter
    from rootlet_server.federation.strategies.strategy import State, Update

_SEPARATORS = "/[:"  # between the name of an attribute and what `state_of` found in it


class FlowerStrategy:
    """Gives Flower's ``aggregate_train`` the answers, in one order of names.

    Flower's own ``configure_train`` is not used: the round loop draws the cohort. What it would
    have noted of the adapter that was sent is noted here.

    Args:
        flower: Flower's strategy, weighing by ``num-examples``.
        kept: its attributes that go from round to round, such as moments.
        of_updates: whether it is given trained minus received, as if the adapter were zero, and
            its result is added to the adapter: the same formula, for strategies that do not mind
            where zero is, and no digits of small updates are lost to the adapter's own size.
        train_options: what devices must be told.
    """

    def __init__(
        self,
        flower: FlowersStrategy,
        *,
        kept: tuple[str, ...] = (),
        of_updates: bool = False,
        train_options: Mapping[str, float] | None = None,
    ) -> None:
        self._flower = flower
        self._kept = kept
        self._of_updates = of_updates
        self.train_options: Mapping[str, float] = train_options or {}

    def aggregate(self, round_: int, received: Adapter, updates: Sequence[Update]) -> Adapter:
        """Flower's result; see :class:`Strategy`.

        Raises:
            AggregationError: Flower makes nothing of the answers.
        """
        zero = {name: np.zeros_like(value) for name, value in received.items()}
        self._note(zero if self._of_updates else received)
        replies = [
            _Reply(update, update.change() if self._of_updates else update.trained, list(received))
            for update in updates
        ]
        arrays, _ = self._flower.aggregate_train(round_, cast("list[Message]", replies))
        if arrays is None:
            name = type(self._flower).__name__
            raise AggregationError(f"round {round_}: {name} made nothing of {len(updates)} answers")
        found = {name: arrays[name].numpy() for name in received}
        if self._of_updates:
            found = {name: received[name] + change for name, change in found.items()}
        return {name: np.asarray(value, np.float32) for name, value in found.items()}

    def state(self) -> State:
        """The kept attributes, by the names of :func:`state_of`."""
        return {
            name: value
            for name, value in state_of(self._flower).items()
            if name.startswith(
                tuple(f"{kept}{mark}" for kept in self._kept for mark in _SEPARATORS)
            )
        }

    def restore(self, state: State, received: Adapter) -> None:
        """Puts the kept attributes back."""
        restore(self._flower, state, list(received))

    def _note(self, sent: Adapter) -> None:
        flower: Any = self._flower
        if isinstance(flower, FedOpt):
            flower.current_arrays = dict(sent)
        elif hasattr(flower, "current_arrays"):
            flower.current_arrays = _record(sent, list(sent))


class _Reply:
    """What ``aggregate_train`` reads of a message; a message proper is made inside a run only."""

    def __init__(self, update: Update, arrays: Adapter, order: list[str]) -> None:
        weights: dict[str, Any] = {"num-examples": update.num_examples, "loss": update.loss}
        self.content = RecordDict(
            {"arrays": _record(arrays, order), "metrics": MetricRecord(weights)}
        )

    def has_error(self) -> bool:
        """Errors were left out before."""
        return False


def _record(arrays: Adapter, order: list[str]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in order})
