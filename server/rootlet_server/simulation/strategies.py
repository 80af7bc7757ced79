"""What a simulation must know of a strategy: whether averages of parts serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from rootlet_server.errors import PreAggregationError

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

AVERAGING = (FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi)
"""Strategies that read nothing of the replies but their weighted mean. Subclasses may read more."""


def default_strategy() -> FedAvg:
    """Flower's FedAvg over everybody who is asked, without a round of evaluation."""
    return FedAvg(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
    )


def averages(strategy: Strategy) -> bool:
    """Whether weighted means of parts give the strategy the same result as all replies."""
    return (
        type(strategy) in AVERAGING
        and getattr(strategy, "train_metrics_aggr_fn", None) is aggregate_metricrecords
        and getattr(strategy, "weighted_by_key", "") == "num-examples"
    )


def require_averaging(strategy: Strategy, why: str) -> None:
    """Refuses a strategy that reads single replies.

    Raises:
        PreAggregationError: it does, or may.
    """
    if not averages(strategy):
        names = ", ".join(sorted(each.__name__ for each in AVERAGING))
        raise PreAggregationError(
            f"{why}, and {type(strategy).__name__} may read every client's own; strategies that "
            f"read the mean alone, as Flower ships them: {names}"
        )
