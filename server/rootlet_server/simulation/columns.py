"""What is told of clients, column by column: one line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.simulation.work import COLUMNS

if TYPE_CHECKING:
    import numpy.typing as npt

    from rootlet_server.simulation.replies import Asked

    Columns = dict[str, npt.NDArray[Any]]


def counted(columns: Columns) -> npt.NDArray[np.bool_]:
    """Whose updates count: those who have examples and stayed finite."""
    keep: npt.NDArray[np.bool_] = (columns["examples"] > 0) & columns["finite"].astype(bool)
    return keep


def means(
    columns: Columns, keep: npt.NDArray[np.bool_], asked: Asked, metric: str
) -> dict[str, float]:
    """Metrics of several clients together: the sum of their examples, and weighted means."""
    weights = columns["examples"][keep].astype(np.float64)
    names = {"loss": "loss"}
    if asked.training is not None and asked.training.measure:
        names |= {"received": f"{metric}_received", "trained": f"{metric}_trained"}
    means = {
        told: float(np.average(columns[name][keep].astype(np.float64), weights=weights))
        for name, told in names.items()
    }
    return {"num-examples": int(weights.sum()), **means}


def joined(columns: list[Columns]) -> Columns:
    """Chunks below one another."""
    if not columns:
        return {name: np.empty(0) for name in COLUMNS}
    return {name: np.concatenate([each[name] for each in columns]) for name in COLUMNS}
