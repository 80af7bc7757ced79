"""Accuracy by round and device, as a PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def plot_accuracy(
    path: Path, by_node: Mapping[int, Sequence[tuple[int, float]]], margin: float
) -> None:
    """One thin line a device, one thick line for their mean.

    Args:
        path: the PNG to write.
        by_node: for each device, (rounds of federation behind it, accuracy on its held-out digits).
        margin: by how much the demo claims that the mean rises; drawn above the first mean.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points: dict[int, list[float]] = {}
    for number, curve in enumerate(by_node.values(), 1):
        rounds, accuracies = zip(*curve, strict=True)
        axes.plot(rounds, accuracies, color="tab:blue", alpha=0.35, linewidth=1,
                  label="each device" if number == 1 else None)  # fmt: skip
        for point, accuracy in curve:
            points.setdefault(point, []).append(accuracy)
    mean = {point: sum(values) / len(values) for point, values in sorted(points.items())}
    axes.plot(
        list(mean), list(mean.values()), color="tab:blue", linewidth=3, marker="o", label="mean"
    )
    claimed = mean[min(mean)] + margin
    axes.axhline(claimed, color="tab:gray", linestyle=":", label=f"claim: at least {claimed:.0%}")
    axes.set(xlabel="rounds", ylabel="accuracy on held-out turned digits", ylim=(0, 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title("Devices learn together; no digit leaves its device")
    figure.savefig(path, dpi=140)
