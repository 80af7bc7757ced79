"""The scoreboard's run: cells, private rows, the sequence, costs; then the table and the plots."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rootlet_runtime.errors import RootletError
from rootlet_server.bench import continual_cells, private
from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.continual_cells import ContinualCell
from rootlet_server.bench.measure import CostCell
from rootlet_server.bench.plots import plot_accuracy, plot_gaps, plot_private
from rootlet_server.bench.private import PrivateCell
from rootlet_server.bench.run import work_off
from rootlet_server.bench.store import Store
from rootlet_server.bench.suite import TASKS, Cell, first_cells, further_cells
from rootlet_server.bench.table import scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

QUICK_TASKS, QUICK_ARMS, QUICK_SEEDS = ("digits-2",), ("head", "bp-lora", "bp", "dfa"), 2
PRIVATE_SEEDS = 3
COST_ARMS = (
    "bp", "bp-int8", "bp-checkpointed", "bp-lora", "bp-float32", "dfa", "dfa-blocks",
    "dfa-blocks-3", "dfa-lora", "head",
)  # fmt: skip
CELLS, PAGE = "cells.jsonl", "learning.md"


class BenchError(RootletError):
    """What was asked for is not in the suite."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to run.

    Attributes:
        out: folder of the page, the plots and the cells.
        tasks, arms: names; none means all.
        seeds: drawings of each task; None takes each task's own number.
        workers: processes of one thread each.
        quick: one task, four rows, two seeds, no costs and no private rows.
        cost, private, continual: whether these parts run.
        report: run nothing; the page of what is kept.
    """

    out: Path
    tasks: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    seeds: int | None = None
    workers: int = 2
    quick: bool = False
    cost: bool = True
    private: bool = True
    continual: bool = True
    report: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (("task", self.tasks, TASKS), ("rule", self.arms, ARMS)):
            for name in given:
                if name not in known:
                    raise BenchError(f"{what} {name!r} is not one of {', '.join(known)}")


def run_bench(config: BenchConfig, console: Console) -> Path:
    """Run what is missing and write the page; returns its path."""
    tasks = list(config.tasks or (QUICK_TASKS if config.quick else TASKS))
    arms = list(config.arms or (QUICK_ARMS if config.quick else ARMS))
    seeds = config.seeds or (QUICK_SEEDS if config.quick else None)
    store = Store(config.out / CELLS)

    def follow(cell: Any, record: dict[str, Any]) -> list[Any]:
        if isinstance(cell, PrivateCell):
            return list(private.further_cells(cell, record, config.seeds or PRIVATE_SEEDS))
        if isinstance(cell, ContinualCell):
            return list(continual_cells.further_cells(cell, record))
        return further_cells(cell, record, seeds) if isinstance(cell, Cell) else []

    def work(title: str, cells: Iterable[Any], workers: int) -> list[dict[str, Any]]:
        with _shown(console, title) as progress:
            return work_off(
                cells,
                store,
                workers=workers,
                stored_only=config.report,
                follow=follow,
                progress=progress,
            )

    records = work("accuracy", first_cells(tasks, arms, seeds), config.workers)
    if config.private and not config.quick:
        records += work("private", private.first_cells(arms), config.workers)
    if config.continual and not config.quick:
        records += work("continual", continual_cells.first_cells(), config.workers)
    if config.cost and not config.quick:
        timed = tuple(arm for arm in COST_ARMS if arm in arms)
        if timed:  # alone on the machine: one worker
            records += work("cost", [CostCell(task=t, arms=timed) for t in tasks], 1)
    page = config.out / PAGE
    page.write_text(scoreboard(records, machine()))
    plot_accuracy(config.out / "accuracy.png", records)
    plot_gaps(config.out / "gaps.png", records)
    plot_private(config.out / "private.png", records)
    console.print(f"wrote {page}")
    return page


@contextmanager
def _shown(console: Console, title: str) -> Iterator[Callable[[int, int, str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=None)

        def show(done: int, total: int, name: str) -> None:
            progress.update(bar, completed=done, total=total, description=f"{title}: {name}")

        yield show


def machine() -> str:
    """The processor, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(found)} cores of {found[0]}" if found else platform.machine()
