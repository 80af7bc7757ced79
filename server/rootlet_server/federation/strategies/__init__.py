"""Strategies: how the answers of a round become the next adapter, one a file.

Each file holds the options of one strategy, a frozen dataclass that checks itself; `start` makes
the strategy. Flower does the mathematics where Flower has it. Importing this package loads no flwr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.strategies.fedadagrad import FedAdagrad
from rootlet_server.federation.strategies.fedadam import FedAdam
from rootlet_server.federation.strategies.fedavg import FedAvg
from rootlet_server.federation.strategies.fedavgm import FedAvgM
from rootlet_server.federation.strategies.fedbuff import FedBuff
from rootlet_server.federation.strategies.fedmedian import FedMedian
from rootlet_server.federation.strategies.fedprox import FedProx
from rootlet_server.federation.strategies.fedtrimmedavg import FedTrimmedAvg
from rootlet_server.federation.strategies.fedyogi import FedYogi
from rootlet_server.federation.strategies.krum import Krum
from rootlet_server.federation.strategies.loramean import LoraMean
from rootlet_server.federation.strategies.multikrum import MultiKrum
from rootlet_server.federation.strategies.options import read
from rootlet_server.federation.strategies.qfedavg import QFedAvg
from rootlet_server.federation.strategies.scaffold import Scaffold
from rootlet_server.federation.strategies.strategy import Buffering, Settings, Strategy, Update

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CONTROLLED",
    "OF_THE_MEAN",
    "STRATEGIES",
    "Buffering",
    "Settings",
    "Strategy",
    "Update",
    "make_settings",
    "make_strategy",
]

STRATEGIES: dict[str, type[Settings]] = {
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedbuff": FedBuff,
    "fedmedian": FedMedian,
    "fedprox": FedProx,
    "fedtrimmedavg": FedTrimmedAvg,
    "fedyogi": FedYogi,
    "krum": Krum,
    "loramean": LoraMean,
    "multikrum": MultiKrum,
    "qfedavg": QFedAvg,
    "scaffold": Scaffold,
}
"""Every strategy's options by its name."""

OF_THE_MEAN = ("fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad")
"""Those that read nothing of the updates but their mean."""

CONTROLLED = "scaffold"
"""The one whose devices keep control variates."""


def make_settings(name: str, options: Mapping[str, Any]) -> Settings:
    """A strategy's options, as an operator wrote them.

    Raises:
        ServeConfigError: an unknown strategy or option, or a value outside its bounds.
    """
    kind = STRATEGIES.get(name)
    if kind is None:
        raise ServeConfigError(f"strategy is {name!r:.80}; it is one of {', '.join(STRATEGIES)}")
    return read(kind, name, options)


def make_strategy(name: str, options: Mapping[str, Any], *, learning_rate: float) -> Strategy:
    """A strategy without any history.

    Args:
        name: one of `STRATEGIES`.
        options: its options, by name.
        learning_rate: what devices are told.

    Raises:
        ServeConfigError: an unknown strategy or option, or a value outside its bounds.
    """
    return make_settings(name, options).start(learning_rate=learning_rate)
