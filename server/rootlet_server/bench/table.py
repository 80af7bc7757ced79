"""The scoreboard as Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.continual_cells import continual_section
from rootlet_server.bench.private import DELTA
from rootlet_server.bench.suite import TASKS
from rootlet_server.bench.summary import (
    BLOCKS,
    CONTROL,
    FLOOR,
    RIVAL,
    Gap,
    Row,
    by_epsilon,
    clearly_behind,
    default_arm,
    default_of,
    deviation,
    gap,
    rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Records = Sequence[Mapping[str, Any]]

MEAN_GOAL, TASK_GOAL, HEAD_GOAL = 0.7, 1.5, 3.0
EXACT = 0.9999  # cosine


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def scoreboard(records: Records, machine: str) -> str:
    """The whole page."""
    tables = {task: table for task in TASKS if (table := rows(records, task))}
    parts = [
        "# The learning scoreboard\n",
        f"Written by `rootlet bench learning` on {machine}. Accuracy in percent on the device's "
        "test data, mean +- standard deviation over seeds; gaps in points, paired by seed, with "
        "their standard error. A gap under two standard errors is a tie. Every row has the same "
        "budget: Adam, warm-up and linear decay, and the same grid of rates and epochs, chosen on "
        "validation data. The base is int8 unless a row says otherwise.\n",
        "## Verdicts\n",
        verdicts(tables),
        "## Default rule by architecture\n",
        "The cheapest row (head only, DFA, DFA through the features, in blocks of two, of three, "
        "backprop) that is not certainly behind the best on any task of the architecture: what "
        '`rule="auto"` takes.\n',
        defaults(tables),
        "## Accuracy\n",
        "![accuracy by task](accuracy.png)\n",
        "![gaps to backprop](gaps.png)\n",
        *(f"### {task}\n\n{accuracy_table(table)}" for task, table in tables.items()),
        "## Alignment with the true gradient\n",
        "Cosine by layer, first to last before the head: at the start > after training.\n",
        cosines(tables),
        "## Cost of a step\n",
        "Compiled graphs in ONNX Runtime, one thread, the rows of a task taking turns; the ratio "
        "is the median over paired steps, to backprop with the same adapter and a float "
        "derivative. Peak memory is of a whole process; energy is estimated from counted "
        "operations ([training.md](../training.md)), not measured.\n",
        costs(records),
        "## Private steps\n",
        privacy(records),
        "## Five tasks in a row\n",
        continual_section(records),
        "## Data and models\n",
        "".join(f"- {', '.join(names)}: {origin}.\n" for origin, names in _origins(tables).items()),
    ]
    return "\n".join(parts)


def _origins(tables: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for task in tables:
        found[TASKS[task].origin].append(task)
    return found


def _points(found: Gap | None) -> str:
    if found is None:
        return ""
    error = "" if math.isnan(found.error) else f" ({found.error:.1f})"
    return f"{found.points:+.1f}{error}{', tie' if found.is_tie else ''}"


def accuracy_table(table: Mapping[str, Row]) -> str:
    """Accuracies and gaps of one task."""
    body = []
    for arm, row in table.items():
        gaps = (
            _points(gap(table, arm, against)) if arm != against else ""
            for against in (CONTROL, FLOOR, RIVAL)
        )
        chosen = f"{row.rate:g}{'*' if row.at_edge else ''}, {row.epochs}"
        spread = "" if math.isnan(row.sd) else f" +- {row.sd:.1f}"
        body.append(
            [ARMS[arm].words, f"{row.mean:.1f}{spread}", str(len(row.by_seed)), *gaps, chosen,
             f"{row.trained_values:,}"]
        )  # fmt: skip
    header = ["row", "accuracy", "seeds", "to backprop", "to head only", "to backprop LoRA",
              "rate, epochs (* edge of the grid)", "trained values"]  # fmt: skip
    return markdown(header, body)


def _tasks_by_kind(tables: Mapping[str, Mapping[str, Row]]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for task in tables:
        by_kind[TASKS[task].kind].append(task)
    return by_kind


def defaults(tables: Mapping[str, Mapping[str, Row]]) -> str:
    """One line for each architecture that the compiler tells apart."""
    body = []
    for kind, tasks in _tasks_by_kind(tables).items():
        arm = default_of(tables[task] for task in tasks)
        alone = ", ".join(f"{task}: {ARMS[default_arm(tables[task])].words}" for task in tasks)
        body.append([kind, "-" if arm is None else ARMS[arm].words, alone])
    return markdown(["architecture", "default", "by task alone"], body)


def verdicts(tables: Mapping[str, Mapping[str, Row]]) -> str:
    """The goals in words, and every loss."""
    whole = {
        task: table
        for task, table in tables.items()
        if {CONTROL, FLOOR, RIVAL, BLOCKS} <= table.keys()
    }
    if not whole:
        return "No task has all the rows that the goals compare.\n"
    default = {
        task: _dfa_of([whole[each] for each in tasks])
        for tasks in _tasks_by_kind(whole).values()
        for task in tasks
    }
    lines = []
    to_bp = {task: gap(table, default[task], CONTROL) for task, table in whole.items()}
    to_lora = {task: gap(table, default[task], RIVAL) for task, table in whole.items()}
    mean_bp, mean_lora = (
        float(np.mean([found.points for found in gaps.values() if found]))
        for gaps in (to_bp, to_lora)
    )
    lines.append(
        "Calibrated int8 DFA, by the default rule of each architecture, is "
        f"{mean_bp:+.2f} points from backprop with the same adapter, "
        f"averaged over {len(whole)} tasks (goal: at least -{MEAN_GOAL}): "
        f"{_met(mean_bp >= -MEAN_GOAL)}."
    )
    exact = [task for task, table in whole.items() if _is_exact(table[default[task]])]
    if exact:
        rest = [found.points for task, found in to_bp.items() if found and task not in exact]
        mean = float(np.mean(rest)) if rest else math.nan
        lines.append(
            f"On {', '.join(exact)} no more layers are adapted than a block holds, and it *is* "
            f"backprop; over the {len(rest)} other tasks it is {mean:+.2f} points from it (goal: "
            f"at least -{MEAN_GOAL}): {_met(mean >= -MEAN_GOAL)}."
        )
    worst = min(to_bp, key=lambda task: to_bp[task].points)  # type: ignore[union-attr]
    low = to_bp[worst].points  # type: ignore[union-attr]
    lines.append(
        f"Its worst task is {worst} with {low:+.1f} (goal: at least -{TASK_GOAL} on every task): "
        f"{_met(low >= -TASK_GOAL)}."
    )
    lines.append(
        f"Against standard backprop LoRA of equal size it is {mean_lora:+.2f} points on average "
        f"(goal: above): {_met(mean_lora > 0)}."
    )
    for task, table in whole.items():
        ahead, ours = gap(table, CONTROL, FLOOR), gap(table, default[task], FLOOR)
        if ahead and ours and ahead.points >= HEAD_GOAL:
            lines.append(
                f"{task}: backprop is {ahead.points:.1f} points above a tuned head, DFA "
                f"{ours.points:.1f} (goal: at least {HEAD_GOAL:g}): "
                f"{_met(ours.points >= HEAD_GOAL)}."
            )
        elif ahead and ours:
            lines.append(
                f"{task}: backprop itself is only {ahead.points:+.1f} points from a tuned head, "
                f"DFA {ours.points:+.1f}."
            )
    lines += [
        f"**DFA loses to backprop on {task}** by {-found.points:.1f} points "
        f"(standard error {found.error:.1f})."
        for task, found in to_bp.items()
        if found and clearly_behind(found)
    ]
    return "".join(f"- {line}\n" for line in lines)


def _dfa_of(tables: Sequence[Mapping[str, Row]]) -> str:
    """What DFA is judged by: an architecture's default rule, blocks of three where that is none."""
    arm = default_of(tables)
    return arm if arm is not None and ARMS[arm].settings["rule"] == "dfa" else BLOCKS


def _is_exact(row: Row) -> bool:
    """Whether its gradients were the true ones at the start, on every layer."""
    return all(start is not None and start > EXACT for _, start, _ in row.cosines)


def _met(holds: bool) -> str:
    return "met" if holds else "**missed**"


def cosines(tables: Mapping[str, Mapping[str, Row]]) -> str:
    """Cosine by layer of the rows that do not have the true gradient."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    body = [
        [task, ARMS[arm].words,
         " ".join(f"{number(a)}>{number(b)}" for _, a, b in row.cosines[:-1])]
        for task, table in tables.items()
        for arm, row in table.items()
        if ARMS[arm].settings["rule"] not in ("backprop", "head_only")
    ]  # fmt: skip
    return markdown(["task", "row", "cosines"], body)


def costs(records: Records) -> str:
    """MACs, time, memory and bytes."""
    body = []
    for record in records:
        for arm, cost in record.get("costs", {}).items():
            body.append(
                [record["task"], ARMS[arm].words,
                 f"{cost['train_macs_int8'] / 1e6:.3f}", f"{cost['train_macs_float32'] / 1e6:.3f}",
                 f"{cost['step_ms']:.2f}",
                 "" if cost["of_backprop"] is None else f"{cost['of_backprop']:.2f}",
                 f"{cost['estimated_uj']:.1f}",
                 f"{cost['peak_mib']:.0f}", f"{cost['bundle_bytes'] / 1e6:.2f}",
                 f"{cost['update_bytes'] / 1e3:.1f}"]
            )  # fmt: skip
    header = ["task", "row", "int8 MMACs an example", "float32 MMACs", "step, ms",
              "time of backprop's", "microjoules a step, estimated", "peak MiB", "bundle MB",
              "update kB"]  # fmt: skip
    return markdown(header, body) if body else "Not measured in this run.\n"


def privacy(records: Records) -> str:
    """Accuracy by epsilon."""
    found = by_epsilon(records)
    if not found:
        return "Not measured in this run.\n"
    epsilons = list(next(iter(found.values())))
    body = [
        [ARMS[arm].words, *(f"{np.mean(t):.1f} +- {deviation(t):.1f}" for t in by.values())]
        for arm, by in found.items()
    ]
    header = ["row", *("no privacy" if e is None else f"epsilon {e:g}" for e in epsilons)]
    return (
        f"handwriting with 2,000 examples, DP-SGD, delta {DELTA:g}, unit: one example, neighbours "
        "by adding or removing one; Poisson sampling, noise by privacy loss distributions. Without "
        "privacy: the same steps, neither clipped nor noised.\n\n"
        + markdown(header, body)
        + "\n![accuracy by epsilon](private.png)\n"
    )
