"""SCAFFOLD in a simulation: the clients' control variates, stacked, and the strategy's.

The correction is that of ``rootlet_runtime.control_variates`` on a device, after each step of plain
SGD; a client keeps its own in the bank, and answers with what changed in it.

Shape legend: K clients of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from rootlet.protocol import CONTROL
from rootlet_server.errors import SimulationConfigError
from rootlet_server.federation.strategies.scaffold import Scaffold as Rule
from rootlet_server.federation.strategies.strategy import Update

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt
    from flwr.app import Message
    from flwr.serverapp import Grid

    from rootlet_runtime.manifest import Manifest
    from rootlet_server.simulation.pace import Pace

    Arrays = Mapping[str, npt.NDArray[Any]]

PREFIX = "control/"
"""Of the bank's slots."""


class StackedControl:
    """One chunk's corrections.

    Args:
        mean: c by name.
        own: c_i, [K, ...] by name.
    """

    def __init__(self, mean: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        self._mean, self._own = mean, own
        self._rates = torch.zeros(len(next(iter(own.values()))))

    def pull(self, adapter: dict[str, Tensor], rates: Tensor) -> None:
        """``w = w - rate (c - c_i)`` of the first ``len(rates)`` clients, in place."""
        active = len(rates)
        self._rates[:active] += rates
        for name, value in adapter.items():
            rate = rates.reshape(-1, *[1] * (value.dim() - 1))
            value[:active] -= rate * (self._mean[name] - self._own[name][:active])

    def drift(
        self, received: Mapping[str, Tensor], trained: Mapping[str, Tensor], sound: Tensor
    ) -> dict[str, Tensor]:
        """``c_i+ - c_i = (w_received - w_trained) / sum_t r_t - c``; zero where not ``sound`` [K].

        A training that was rolled back does not know the rates of all its steps.
        """
        found = {}
        for name, value in trained.items():
            shape = (-1, *[1] * (value.dim() - 1))
            changed = (received[name] - value) / self._rates.reshape(shape) - self._mean[name]
            found[name] = torch.where(sound.reshape(shape), changed, torch.zeros(()))
        return found


@dataclass(frozen=True)
class ControlTask:
    """A chunk's part of a round of SCAFFOLD.

    Attributes:
        mean: c by name, as the server sent it.
        own: c_i, [K, ...] by name.
    """

    mean: Arrays
    own: Arrays

    def of(self, rows: npt.NDArray[Any]) -> ControlTask:
        """For some of the clients."""
        return ControlTask(self.mean, {name: value[rows] for name, value in self.own.items()})

    def stacked(self) -> StackedControl:
        """For the engine."""
        mean, own = (
            {name: torch.from_numpy(np.asarray(value)) for name, value in each.items()}
            for each in (self.mean, self.own)
        )
        return StackedControl(mean, own)


def check_scaffold(manifest: Manifest, pace: Pace) -> None:
    """Refuses a bundle that devices refuse too, and rounds that do not wait for each other.

    Raises:
        SimulationConfigError: it does not step by plain SGD, or rounds are buffered.
    """
    if pace.buffer_size is not None:
        raise SimulationConfigError("Scaffold waits for its round, and buffer_size does not")
    if manifest.optimizer != "sgd":
        raise SimulationConfigError(
            f"the bundle steps by {manifest.optimizer}, and control variates correct plain SGD: "
            "compile it with optimizer sgd, or take another strategy"
        )


class Scaffold(FedAvg):
    """`rootlet serve --strategy scaffold` as a strategy of Flower.

    Args:
        devices: N, how many there are in the federation.
        eta: the server's step size.
        options: FedAvg's.
    """

    def __init__(self, devices: int, eta: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        Rule(devices=devices, eta=eta)  # bad values are named here
        self.devices, self.eta = devices, eta
        self.mean_control: dict[str, npt.NDArray[np.float32]] = {}
        self._received: dict[str, npt.NDArray[np.float32]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, with c; what is missing at first is zero."""
        self._received = {name: array.numpy() for name, array in arrays.items()}
        mean = self.mean_control
        control = ArrayRecord(
            {
                name: Array(mean[name] if mean else np.zeros_like(value))
                for name, value in self._received.items()
            }
        )
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            message.content[CONTROL] = control
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """SCAFFOLD's step, and FedAvg's means of the metrics."""
        answered, _ = self._check_and_log_replies(replies, is_train=False)
        if not answered:
            return None, None
        updates = [
            Update(
                node=message.metadata.src_node_id,
                received=self._received,
                trained=_arrays(message, self.arrayrecord_key),
                num_examples=int(message.content.metric_records["metrics"]["num-examples"]),  # type: ignore[arg-type]
                loss=float(message.content.metric_records["metrics"]["loss"]),  # type: ignore[arg-type]
                control=_arrays(message, CONTROL),
            )
            for message in answered
        ]
        rule = Rule(devices=self.devices, eta=self.eta).start(learning_rate=1.0)
        rule.restore(self.mean_control, self._received)
        moved = rule.aggregate(server_round, self._received, updates)
        self.mean_control = {name: np.asarray(value) for name, value in rule.state().items()}
        contents = [message.content for message in answered]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return ArrayRecord({name: Array(value) for name, value in moved.items()}), metrics


def _arrays(message: Message, record: str) -> dict[str, npt.NDArray[np.float32]]:
    return {name: array.numpy() for name, array in message.content.array_records[record].items()}
