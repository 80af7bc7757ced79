"""The picture of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from rootlet_server.simulation.result import SimulationResult

DPI = 120


def draw(result: SimulationResult, path: Path) -> Path:
    """Accuracy by round, by simulated hour, and over the clients of the last round that have it."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    rounds = np.array([each.round for each in result.rounds])
    hours = np.array([each.virtual_s for each in result.rounds]) / 3600
    central = np.array([each.central_metric for each in result.rounds])
    loss = np.array([each.loss for each in result.rounds])
    measured = np.isfinite(central).any()
    values, label = (central, f"{result.metric}, held out") if measured else (loss, "training loss")
    for axis, x, name in ((axes[0], rounds, "round"), (axes[1], hours, "simulated hours")):
        axis.plot(x, values, marker="o", markersize=3)
        axis.set_xlabel(name)
        axis.set_ylabel(label)
    _distribution(result, axes[2])
    if result.privacy:
        figure.suptitle(result.privacy, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _distribution(result: SimulationResult, axis: Any) -> None:
    names = {
        "received": f"{result.metric}, received",
        "trained": f"{result.metric}, trained",
        "metric": f"{result.metric} in training",
    }
    last = result.clients["round"] == (result.clients["round"].max(initial=0))
    shown = 0
    for name, label in names.items():
        values = np.asarray(result.clients[name], np.float64)[last]
        values = values[np.isfinite(values)]
        if len(values) and not (name == "metric" and shown):
            axis.hist(values, bins=20, alpha=0.6, label=label)
            shown += 1
    axis.set_xlabel("clients of the last round")
    axis.set_ylabel("clients")
    if shown:
        axis.legend(fontsize=8)
