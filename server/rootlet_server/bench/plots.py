"""Plots beside the table: accuracy by row and task, and accuracy by epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.suite import TASKS
from rootlet_server.bench.summary import CONTROL, FLOOR, RIVAL, by_epsilon, deviation, gap, rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COMPARED = (FLOOR, RIVAL, CONTROL, "dfa", "dfa-blocks", "dfa-blocks-3")


def plot_accuracy(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A group of bars for each task, one bar a row, with standard deviations over seeds."""
    tables = {task: table for task in TASKS if (table := rows(records, task))}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    arms = [arm for arm in COMPARED if any(arm in table for table in tables.values())]
    width = 0.8 / max(len(arms), 1)
    for n, arm in enumerate(arms):
        at = [i for i, table in enumerate(tables.values()) if arm in table]
        shown = [table[arm] for table in tables.values() if arm in table]
        axes.bar(
            np.array(at) + (n - (len(arms) - 1) / 2) * width,
            [row.mean for row in shown],
            width,
            yerr=[np.nan_to_num(row.sd) for row in shown],
            label=ARMS[arm].words,
        )
    axes.set_xticks(range(len(tables)), list(tables))
    axes.set(ylabel="accuracy on the device's test data, %", ylim=(40, 100))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=130)


def plot_gaps(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Each DFA row's paired gap to backprop with the same adapter, with two standard errors."""
    tables = {task: table for task in TASKS if (table := rows(records, task))}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    arms = [
        arm
        for arm in ("dfa", "dfa-blocks", "dfa-blocks-3", RIVAL)
        if any(arm in table for table in tables.values())
    ]
    for n, arm in enumerate(arms):
        found = [(i, gap(table, arm, CONTROL)) for i, table in enumerate(tables.values())]
        known = [(i, g) for i, g in found if g is not None]
        axes.errorbar(
            [i + (n - (len(arms) - 1) / 2) * 0.15 for i, _ in known],
            [g.points for _, g in known],
            yerr=[2 * np.nan_to_num(g.error) for _, g in known],
            fmt="o",
            capsize=3,
            label=ARMS[arm].words,
        )
    axes.axhline(0, color="tab:gray")
    axes.set_xticks(range(len(tables)), list(tables))
    axes.set(ylabel="points from backprop, calibrated A")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def plot_private(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A line for each private row: accuracy by epsilon, with standard deviations over seeds."""
    found = by_epsilon(records)
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm, by in found.items():
        axes.errorbar(
            range(len(by)),
            [np.mean(tests) for tests in by.values()],
            yerr=[np.nan_to_num(deviation(tests)) for tests in by.values()],
            fmt="o-",
            capsize=3,
            label=ARMS[arm].words,
        )
    for by in list(found.values())[:1]:
        names = ["none" if epsilon is None else f"{epsilon:g}" for epsilon in by]
        axes.set_xticks(range(len(by)), names)
    axes.set(xlabel="epsilon", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
