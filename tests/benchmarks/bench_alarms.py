"""How often the quality gate and the drift alarm speak, and how late.

    python tests/benchmarks/bench_alarms.py

Simulated streams and pairs of errors, drawn from fixed seeds; no model is trained.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import numpy as np
from report import print_heading, print_table

from rootlet_runtime.drift import LossDrift
from rootlet_runtime.quality_gate import QualityGate

HELD_OUT = (8, 20, 50, 100, 200, 800)
CHANGES = {
    "5/5: equal": (0.05, 0.05),
    "2/7: better": (0.02, 0.07),
    "8/3: 5 worse": (0.08, 0.03),
    "13/3: 10 worse": (0.13, 0.03),
    "23/3: 20 worse": (0.23, 0.03),
}
STREAMS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "log-normal": lambda rng, n: rng.lognormal(0, 1.5, n),
    "one error in ten": lambda rng, n: (rng.random(n) < 0.1).astype(float),
}
RUNS, STREAM = 40, 5000
BEFORE, AFTER, RISES = 500, 2000, (0.2, 0.3, 0.5)


def refused(worse: float, better: float, examples: int, updates: int) -> float:
    """The share of updates that the gate refuses; errors are 0 or 1, and pairs independent."""
    rng = np.random.default_rng(examples)
    gate, count = QualityGate(), 0
    for _ in range(updates):
        draw = rng.random(examples)
        before = ((draw >= worse) & (draw < worse + better)).astype(float)
        count += not gate.judge(before, (draw < worse).astype(float)).accepted
    return count / updates


def false_alarms(draw) -> int:
    """Alarms in all runs of a stream whose law does not change; the test starts anew after each."""
    count = 0
    for run in range(RUNS):
        test = LossDrift()
        for value in draw(np.random.default_rng(run), STREAM):
            if test.update(float(value)):
                count += 1
                test.reset()
    return count


def delays(share: float, runs: int) -> list[int]:
    """Errors from the rise of their rate to the alarm; runs that end without one are left out."""
    found = []
    for run in range(runs):
        rng, test = np.random.default_rng(run), LossDrift()
        rates = itertools.chain(itertools.repeat(0.1, BEFORE), itertools.repeat(share, AFTER))
        for number, rate in enumerate(rates):
            if test.update(float(rng.random() < rate)) and number >= BEFORE:
                found.append(number - BEFORE + 1)
                break
    return found


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--runs", type=int, default=200, help="streams whose error rate rises")
    args = parser.parse_args()
    print_heading("The quality gate and the drift alarm with their defaults", ("rootlet", "numpy"))
    print(f"\nRefused, of {args.updates} simulated updates (worse / better, in points):\n")
    rows = [
        [str(n), *(f"{refused(*change, n, args.updates):.1%}" for change in CHANGES.values())]
        for n in HELD_OUT
    ]
    print_table(("held-out examples", *CHANGES), rows)
    print(f"\nFalse alarms in {RUNS * STREAM:,} values of each stream:\n")
    print_table(("stream", "alarms"), [(k, str(false_alarms(v))) for k, v in STREAMS.items()])
    print(f"\nAn error rate of 10 % rises after {BEFORE} values ({args.runs} runs):\n")
    rows = []
    for share in RISES:
        found = delays(share, args.runs)
        median = f"{statistics.median(found):.0f}" if found else ""
        rows.append([f"{share:.0%}", f"{len(found) / args.runs:.0%}", median])
    print_table((f"to, for {AFTER} values", "found", "median delay, values"), rows)


if __name__ == "__main__":
    main()
