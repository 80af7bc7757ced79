"""The suite: its tasks, and the cells that fill the table."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rootlet_server.bench import (
    task_digits,
    task_handwriting,
    task_images,
    task_sensor,
    task_text,
)
from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.training import accuracies, train
from rootlet_server.compiler.alignment import alignment

if TYPE_CHECKING:
    from rootlet_server.bench.problem import Problem, Task

# Raise it when a change to the suite or the compiler changes accuracies: stored cells of another
# version are not read.
SUITE_VERSION = 1

TASKS: dict[str, Task] = {
    task.name: task
    for module in (task_digits, task_handwriting, task_sensor, task_text, task_images)
    for task in module.TASKS
}
ALIGNMENT_EXAMPLES = 128
STUDY_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One task, arm and seed, with what it tries; its settings and the suite's version name it."""

    task: str
    arm: str
    seed: int
    rates: tuple[float, ...]
    epochs: tuple[int, ...]
    version: int = SUITE_VERSION

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on."""
        task = TASKS[self.task]
        settings = {**asdict(self), "batch_size": task.batch_size, "stacked": task.stacked}
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """Train at every rate and number of epochs; accuracies in 0..1, in JSON's types."""
        started = time.monotonic()
        task, problem = TASKS[self.task], drawn(self.task, self.seed)
        built = ARMS[self.arm].build(problem, self.seed)
        runs = []
        for epochs in self.epochs:
            trained = train(
                built,
                problem.train,
                rates=self.rates,
                epochs=epochs,
                batch_size=task.batch_size,
                seed=self.seed,
                stacked=task.stacked,
            )
            validation, test = (
                accuracies(built, trained, data, stacked=task.stacked)
                for data in (problem.validation, problem.test)
            )
            runs += [
                {"rate": rate, "epochs": epochs, "validation": v, "test": t}
                for rate, v, t in zip(self.rates, validation, test, strict=True)
            ]
        best = max(range(len(self.rates)), key=lambda n: validation[n])
        before, after = (
            alignment(
                built,
                problem.train.x[:ALIGNMENT_EXAMPLES],
                problem.train.y[:ALIGNMENT_EXAMPLES],
                adapter=adapter,
            )
            for adapter in (None, trained.one(best))
        )
        return {
            "key": self.key,
            **asdict(self),
            "runs": runs,
            "base_accuracy": problem.base_accuracy,
            "test_examples": len(problem.test),
            "trained_values": sum(value.numel() for value in built.adapter.values()),
            "cosines": [[x.module, x.cosine, y.cosine]
                        for x, y in zip(before.layers, after.layers, strict=True)],
            "seconds": time.monotonic() - started,
        }  # fmt: skip


@lru_cache(maxsize=4)
def drawn(task: str, seed: int) -> Problem:
    """The problem of a seed, kept for the next arms."""
    return TASKS[task].make(seed)


def seeds_of(task: Task, arm: str, asked: int | None) -> int:
    """How many drawings a row gets: what was asked for, the task's number, or three for study."""
    return asked or (min(STUDY_SEEDS, task.seeds) if ARMS[arm].study else task.seeds)


def first_cells(tasks: list[str], arms: list[str], seeds: int | None) -> list[Cell]:
    """The cells that try every rate: all seeds of stacked tasks, one of the others.

    Seed by seed, and rows for study last, so that a run that is cut short has compared what the
    defaults follow from.

    Args:
        tasks: names.
        arms: names; the table's most important rows come first.
        seeds: fewer or more than each task's own number.
    """
    cells = [
        Cell(task=name, arm=arm, seed=seed, rates=ARMS[arm].rates(task.rates), epochs=task.epochs)
        for arm in arms
        if not ARMS[arm].cost_only
        for name in tasks
        for task in [TASKS[name]]
        if task.studied or not ARMS[arm].study
        for seed in range(seeds_of(task, arm, seeds) if task.stacked else 1)
    ]
    return sorted(cells, key=lambda cell: (ARMS[cell.arm].study, cell.seed))


def further_cells(tuned: Cell, record: dict[str, Any], seeds: int | None) -> list[Cell]:
    """The other seeds of a task that does not stack, at what the first seed chose."""
    task = TASKS[tuned.task]
    if task.stacked or tuned.seed:
        return []
    best = max(record["runs"], key=lambda run: run["validation"])
    chosen = replace(tuned, rates=(best["rate"],), epochs=(best["epochs"],))
    count = seeds_of(task, tuned.arm, seeds)
    return [replace(chosen, seed=seed) for seed in range(1, count)]
