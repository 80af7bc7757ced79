"""Forgetting over five tasks: writes docs/results/continual.md.

    python tests/benchmarks/bench_continual.py [--seeds 3] [--keep FOLDER]

Every method is tuned alike: its learning rate is the one with the best average accuracy on
validation examples of a drawing that the table does not use. About ten minutes on one free core;
with ``--keep`` each sequence and rule is kept when it is done, and not run again.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rootlet_runtime import Bundle
from rootlet_runtime.continual_metrics import ContinualMetrics, continual_metrics
from rootlet_server.bench import continual

Found = dict[str, dict[str, Any]]
RULES = ("dfa", "backprop")
RATES = (3e-4, 1e-3, 3e-3)
EPOCHS = 5
VALIDATION_SEED = 100
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "continual.md"
REPLAYED = "replay of 2 %"


def measured(
    bundle: Bundle,
    sequence: continual.Sequence,
    method: continual.Method,
    rate: float,
    seed: int,
) -> ContinualMetrics:
    """One run of the five tasks."""
    return continual_metrics(
        continual.accuracy_matrix(
            bundle, sequence, method, learning_rate=rate, epochs=EPOCHS, seed=seed
        )
    )


def runs(name: str, rule: str, seeds: int, folder: Path) -> Found:
    """By method: the rate, and the measures of every seed; naive also at replay's rate."""
    make = continual.SEQUENCES[name]

    def opened(seed: int, *, validation: bool) -> tuple[Bundle, continual.Sequence]:
        sequence = make(seed, validation=validation)
        path = folder / f"{name}-{rule}-{seed}.rootlet"
        continual.compile_sequence(sequence, rule, seed, path)
        return Bundle.load(path, trusted_keys=[], allow_unsigned=True), sequence

    bundle, sequence = opened(VALIDATION_SEED, validation=True)
    found: Found = {}
    for method in continual.METHODS:
        tried = {
            rate: measured(bundle, sequence, method, rate, VALIDATION_SEED).average_accuracy
            for rate in RATES
        }
        found[method.name] = {"rate": max(tried, key=lambda rate: tried[rate]), "seeds": []}
        print(name, rule, method.name, {r: round(100 * v, 1) for r, v in tried.items()}, flush=True)
    replays_rate = found[REPLAYED]["rate"]
    found["naive, at the rate of replay"] = {"rate": replays_rate, "seeds": []}
    naive = continual.METHODS[0]
    methods = {method.name: method for method in continual.METHODS}
    methods["naive, at the rate of replay"] = naive
    for seed in range(seeds):
        bundle, sequence = opened(seed, validation=False)
        for title, method in methods.items():
            entry = found[title]
            metrics = measured(bundle, sequence, method, entry["rate"], seed)
            entry["seeds"].append(asdict(metrics))
        print(name, rule, f"drawing {seed} is done", flush=True)
    return found


def kept(name: str, rule: str, seeds: int, keep: Path | None) -> Found:
    """What ``runs`` gives, from the folder where an earlier call left it."""
    path = None if keep is None else keep / f"{name}-{rule}-{seeds}.json"
    if path is not None and path.exists():
        found: Found = json.loads(path.read_text())
        return found
    with tempfile.TemporaryDirectory() as folder:
        found = runs(name, rule, seeds, Path(folder))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return found


def cell(entry: dict[str, Any], measure: str) -> str:
    """Mean and standard deviation over the seeds, in points."""
    values = [100 * metrics[measure] for metrics in entry["seeds"]]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def table(found: dict[str, Found]) -> list[str]:
    """Rows by method, columns by rule."""
    measures = (
        ("average_accuracy", "accuracy"),
        ("forgetting", "forgetting"),
        ("backward_transfer", "backward transfer"),
        ("learning_accuracy", "when new"),
    )
    heads = [f"{rule}: {short}" for rule in found for _, short in measures]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for title in next(iter(found.values())):
        cells = [cell(by[title], measure) for by in found.values() for measure, _ in measures]
        rates = "/".join(f"{by[title]['rate']:g}" for by in found.values())
        lines.append(f"| {title} (rate {rates}) | " + " | ".join(cells) + " |")
    return lines


def ratios(found: dict[str, Found]) -> str:
    """What replay leaves of the forgetting."""

    def mean(entry: dict[str, Any]) -> float:
        return float(np.mean([metrics["forgetting"] for metrics in entry["seeds"]]))

    parts = []
    for rule, by in found.items():
        kept = mean(by[REPLAYED])
        own, same = mean(by["naive"]), mean(by["naive, at the rate of replay"])
        parts.append(f"{rule} {kept / own:.2f} ({kept / same:.2f} at the same rate)")
    return "Forgetting with replay / naive: " + "; ".join(parts) + "."


def main() -> None:
    """Runs everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sequences", nargs="+", default=list(continual.SEQUENCES))
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = [
        "# Five tasks in a row",
        "",
        "Written by `python tests/benchmarks/bench_continual.py`: the trainer that devices run, on "
        "real digits turned by 36, 72, 108, 144 and 180 degrees, one angle a task. Means and "
        f"standard deviations over {arguments.seeds} drawings, in points. Base of two hidden "
        "layers in int8, calibrated adapters (B learns, r = 32), Adam, "
        f"{EPOCHS} epochs a task, {continual.BATCH_SIZE} fresh examples a step; with replay "
        "three times as many replayed ones beside them. The learning rate of each row is the best "
        f"of {', '.join(f'{rate:g}' for rate in RATES)} by average accuracy on validation examples "
        "of another drawing. Terms: [continual.md](../continual.md).",
    ]
    for name in arguments.sequences:
        found = {
            rule: kept(name, rule, arguments.seeds, arguments.keep) for rule in arguments.rules
        }
        description = (continual.SEQUENCES[name].__doc__ or "").partition("\n\n")[0]
        lines += ["", f"## {name}", "", description, "", *table(found), "", ratios(found)]
    print("\n".join(lines))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
