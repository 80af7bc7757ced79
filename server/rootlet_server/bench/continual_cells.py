"""The five-task sequence as cells of the scoreboard, and their part of the page.

Every method is tuned alike: its rate is the one with the best average accuracy on validation
examples of a drawing that the table does not use.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_runtime import Bundle
from rootlet_runtime.continual_metrics import continual_metrics
from rootlet_server.bench.continual import (
    BATCH_SIZE,
    METHODS,
    SEQUENCES,
    Method,
    accuracy_matrix,
    compile_sequence,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TASK = "continual"
RULES = ("dfa", "backprop")
RATES = (3e-4, 1e-3, 3e-3)
EPOCHS, SEEDS = 5, 3
VALIDATION_SEED = 100
NAIVE, REPLAYED = "naive", "replay of 2 %"
AT_REPLAYS_RATE = "naive, at the rate of replay"
GOAL = 0.5  # of the forgetting without replay
MEASURES = (
    ("average_accuracy", "accuracy"),
    ("forgetting", "forgetting"),
    ("backward_transfer", "backward transfer"),
    ("learning_accuracy", "when new"),
)


@dataclass(frozen=True, kw_only=True)
class ContinualCell:
    """One sequence, rule and drawing: every method, at every rate or at the chosen ones.

    Attributes:
        sequence: its name.
        arm: the rule.
        seed: of the drawing; ``VALIDATION_SEED`` tunes.
        rates: tried by each method, by its name; the tuning cell has all.
    """

    sequence: str
    arm: str
    seed: int
    rates: tuple[tuple[str, tuple[float, ...]], ...]
    epochs: int = EPOCHS
    task: str = TASK
    version: int = 1

    @property
    def key(self) -> str:
        """A digest of everything that the result depends on."""
        settings = {**asdict(self), "methods": [asdict(method) for method in METHODS]}
        text = json.dumps({"continual": settings, "batch": BATCH_SIZE}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """The measures in 0..1 of each method and rate."""
        started = time.monotonic()
        validation = self.seed == VALIDATION_SEED
        sequence = SEQUENCES[self.sequence](self.seed, validation=validation)
        methods = {**{method.name: method for method in METHODS}, AT_REPLAYS_RATE: METHODS[0]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sequence.rootlet"
            compile_sequence(sequence, self.arm, self.seed, path)
            bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)

            def measured(method: Method, rate: float) -> dict[str, float]:
                matrix_TT = accuracy_matrix(
                    bundle, sequence, method, learning_rate=rate, epochs=self.epochs, seed=self.seed
                )
                return asdict(continual_metrics(matrix_TT))

            runs = [
                {"method": name, "rate": rate, **measured(methods[name], rate)}
                for name, rates in self.rates
                for rate in rates
            ]
        return {
            "key": self.key,
            "task": self.task,
            "sequence": self.sequence,
            "arm": self.arm,
            "seed": self.seed,
            "measures": runs,
            "seconds": time.monotonic() - started,
        }


def first_cells() -> list[ContinualCell]:
    """The cells that choose the rates."""
    rates = tuple((method.name, RATES) for method in METHODS)
    return [
        ContinualCell(sequence=sequence, arm=rule, seed=VALIDATION_SEED, rates=rates)
        for sequence in SEQUENCES
        for rule in RULES
    ]


def further_cells(tuned: ContinualCell, record: Mapping[str, Any]) -> list[ContinualCell]:
    """The drawings of the table at each method's chosen rate; naive also at replay's."""
    if tuned.seed != VALIDATION_SEED:
        return []
    chosen: dict[str, tuple[float, float]] = {}
    for run in record["measures"]:
        score = (run["average_accuracy"], run["rate"])
        chosen[run["method"]] = max(chosen.get(run["method"], score), score)
    chosen[AT_REPLAYS_RATE] = chosen[REPLAYED]
    rates = tuple((method, (rate,)) for method, (_, rate) in chosen.items())
    return [
        ContinualCell(sequence=tuned.sequence, arm=tuned.arm, seed=seed, rates=rates)
        for seed in range(SEEDS)
    ]


def continual_section(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables and what replay leaves of the forgetting."""
    kept = [r for r in records if r["task"] == TASK and r["seed"] != VALIDATION_SEED]
    if not kept:
        return "Not measured in this run.\n"
    parts = [
        "Digits turned by 36, 72, 108, 144 and 180 degrees, one angle a task, with the trainer "
        f"that devices run: Adam, {EPOCHS} epochs a task, {BATCH_SIZE} fresh examples a step, with "
        "replay three times as many replayed ones beside them. In points; terms and remedies: "
        "[continual.md](../continual.md).\n"
    ]
    for sequence in dict.fromkeys(record["sequence"] for record in kept):
        found = {
            rule: _by_method(kept, sequence, rule)
            for rule in RULES
            if any((r["sequence"], r["arm"]) == (sequence, rule) for r in kept)
        }
        parts += [f"### {sequence}\n", "\n".join(_table(found)) + "\n", _ratios(found) + "\n"]
    return "\n".join(parts)


def _by_method(
    records: Sequence[Mapping[str, Any]], sequence: str, rule: str
) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if (record["sequence"], record["arm"]) == (sequence, rule):
            for run in record["measures"]:
                found.setdefault(run["method"], []).append(run)
    return found


def _table(found: Mapping[str, Mapping[str, list[Mapping[str, Any]]]]) -> list[str]:
    heads = [f"{rule}: {short}" for rule in found for _, short in MEASURES]
    lines = [f"| method (rate) | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for method in next(iter(found.values())):
        rates = "/".join(f"{by[method][0]['rate']:g}" for by in found.values())
        cells = []
        for by in found.values():
            for measure, _ in MEASURES:
                values = [100 * run[measure] for run in by[method]]
                spread = f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.1f}{spread}")
        lines.append(f"| {method} ({rates}) | {' | '.join(cells)} |")
    return lines


def _ratios(found: Mapping[str, Mapping[str, list[Mapping[str, Any]]]]) -> str:
    def mean(runs: list[Mapping[str, Any]]) -> float:
        return float(np.mean([run["forgetting"] for run in runs]))

    parts = []
    for rule, by in found.items():
        own = mean(by[REPLAYED]) / mean(by[NAIVE])
        same = mean(by[REPLAYED]) / mean(by[AT_REPLAYS_RATE])
        verdict = "met" if own <= GOAL else "**missed**"
        parts.append(f"{rule} {own:.2f} ({same:.2f} at the same rate; goal {GOAL:g}: {verdict})")
    return f"Forgetting with replay / naive: {'; '.join(parts)}."
