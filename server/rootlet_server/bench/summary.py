"""From stored cells to the figures of the table: tuning, means, paired gaps, ties, defaults.

Rates and epochs are chosen for each row by the mean validation accuracy of the seeds that tried
them all. A gap is paired by seed. Its standard error is that of the paired differences, or, where
this is larger, of those of all rows of the task that compete for the default: three seeds that
agree by chance do not make a difference certain. Under two standard errors it is a tie.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.bench.arms import ARMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTROL, FLOOR, RIVAL, BLOCKS = "bp", "head", "bp-lora", "dfa-blocks-3"
TIE = 2.0
SMALLEST_SE = 1e-6
# Cheaper first: what a tie is broken by. Backprop reads every frozen weight twice.
BY_COST = ("head", "dfa", "dfa-features", "dfa-blocks", "dfa-blocks-3", "bp", "bp-lora")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm on one task; accuracies in percent.

    Attributes:
        arm: its name.
        by_seed: test accuracy at the chosen rate and epochs.
        rate, epochs: what was chosen.
        at_edge: whether the best rate is the lowest or highest tried.
        cosines: by layer, at the start and after training: means over seeds; None where there
            is no gradient to compare with.
        trained_values: size of the adapter.
    """

    arm: str
    by_seed: Mapping[int, float]
    rate: float
    epochs: int
    at_edge: bool
    cosines: tuple[tuple[str, float | None, float | None], ...]
    trained_values: int

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return float(np.mean(list(self.by_seed.values())))

    @property
    def sd(self) -> float:
        """Standard deviation over seeds, nan for one."""
        return deviation(list(self.by_seed.values()))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A paired difference in points, with its standard error (nan for one seed)."""

    points: float
    error: float

    @property
    def is_tie(self) -> bool:
        """Whether it is under two standard errors; unknown counts as a tie."""
        return not abs(self.points) >= TIE * self.error


def deviation(values: list[float]) -> float:
    """Sample standard deviation; nan for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def differences(a: Row, b: Row) -> list[float]:
    """The first row minus the second, seed by seed."""
    return [a.by_seed[s] - b.by_seed[s] for s in sorted(a.by_seed.keys() & b.by_seed.keys())]


def rows(records: Iterable[Mapping[str, Any]], task: str) -> dict[str, Row]:
    """The rows of a task by arm, in the table's order."""
    by_arm: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["task"] == task and record["arm"] in ARMS:
            by_arm[record["arm"]].append(record)
    return {arm: _row(arm, by_arm[arm]) for arm in ARMS if arm in by_arm}


def _row(arm: str, records: list[Mapping[str, Any]]) -> Row:
    most = max(len(record["runs"]) for record in records)
    tuning = [record for record in records if len(record["runs"]) == most]
    scores: dict[tuple[float, int], list[float]] = defaultdict(list)
    for record in tuning:
        for run in record["runs"]:
            scores[run["rate"], run["epochs"]].append(run["validation"])
    rate, epochs = max(scores, key=lambda setting: float(np.mean(scores[setting])))
    by_seed = {
        record["seed"]: 100 * run["test"]
        for record in records
        for run in record["runs"]
        if (run["rate"], run["epochs"]) == (rate, epochs)
    }
    tried = sorted({rate for rate, _ in scores})
    return Row(
        arm=arm,
        by_seed=by_seed,
        rate=rate,
        epochs=epochs,
        at_edge=rate in (tried[0], tried[-1]) and len(tried) > 2,
        cosines=_mean_cosines([record["cosines"] for record in records]),
        trained_values=records[0]["trained_values"],
    )


def _mean_cosines(
    by_record: list[list[tuple[str, float | None, float | None]]],
) -> tuple[tuple[str, float | None, float | None], ...]:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return tuple(
        (layers[0][0], mean([x[1] for x in layers]), mean([x[2] for x in layers]))
        for layers in zip(*by_record, strict=True)
    )


def gap(table: Mapping[str, Row], arm: str, against: str) -> Gap | None:
    """The paired difference of two rows, None where one is missing."""
    if arm not in table or against not in table:
        return None
    found = differences(table[arm], table[against])
    own = deviation(found)
    pooled = [
        deviation(differences(table[a], table[against])) ** 2
        for a in BY_COST
        if a in table and a != against
    ]
    known = [value for value in pooled if not math.isnan(value)]
    spread = max(own, math.sqrt(float(np.mean(known)))) if known else own
    return Gap(points=float(np.mean(found)), error=max(spread / math.sqrt(len(found)), SMALLEST_SE))


def default_arm(table: Mapping[str, Row]) -> str:
    """The cheapest row that is not certainly behind the best one."""
    competing = [arm for arm in BY_COST if arm in table]
    best = max(competing, key=lambda arm: table[arm].mean)
    for arm in competing:
        found = gap(table, arm, best)
        if arm == best or (found is not None and found.is_tie):
            return arm
    return best


def default_of(tables: Iterable[Mapping[str, Row]]) -> str | None:
    """The cheapest row that is not certainly behind the best one of any of these tasks.

    None where no row is in every table.
    """
    known = [{arm: table[arm] for arm in BY_COST if arm in table} for table in tables]
    for arm in BY_COST:
        if known and all(arm in table and not _loses(table, arm) for table in known):
            return arm
    return None


def _loses(table: Mapping[str, Row], arm: str) -> bool:
    best = max(table, key=lambda other: table[other].mean)
    return arm != best and clearly_behind(gap(table, arm, best))


def clearly_behind(found: Gap | None) -> bool:
    """Whether a difference is negative and no tie."""
    return found is not None and found.points < 0 and not found.is_tie


def by_epsilon(
    records: Iterable[Mapping[str, Any]],
) -> dict[str, dict[float | None, list[float]]]:
    """Of each private row: test accuracies in percent by epsilon, largest budget first.

    The rate of each row and epsilon is the one that the first seed chose on validation data, which
    is the one that all seeds have.
    """
    tried: dict[str, dict[float | None, dict[float, list[tuple[float, float]]]]] = {}
    for record in records:
        if record["task"] == "private":
            for run in record["runs"]:
                by_rate = tried.setdefault(record["arm"], {}).setdefault(run["epsilon"], {})
                by_rate.setdefault(run["rate"], []).append((run["validation"], 100 * run["test"]))
    return {
        arm: {
            epsilon: [test for _, test in max(by_rate.values(), key=_seeds_and_validation)]
            for epsilon, by_rate in sorted(
                by.items(), key=lambda item: -math.inf if item[0] is None else -item[0]
            )
        }
        for arm, by in tried.items()
    }


def _seeds_and_validation(scores: list[tuple[float, float]]) -> tuple[int, float]:
    return len(scores), float(np.mean([validation for validation, _ in scores]))
