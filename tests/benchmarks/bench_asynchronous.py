"""Time to an accuracy in simulated hours: synchronous rounds, over-selection, buffered rounds.

    python tests/benchmarks/bench_asynchronous.py

MNIST. A small base learns upright digits; 500 devices hold 20 to 60 digits each, of few classes,
all turned by 60 degrees. 40 devices train at a time. Their speed is log-normal with a spread of 4
(one standard deviation is a factor of 4: a heavy tail), their network's is 3, and 5 % are lost in
a round. Synchronous rounds wait for the slowest of 40, or for the first 40 of 52; buffered ones
(FedBuff) make a version of every 20 answers, weighed by 1 / sqrt(1 + staleness). Each way gets the
best of three local rates, chosen on a drawing of its own. The bar is 95 % of what the synchronous
way reaches in the end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from report import print_heading, print_table, with_spread
from turned_digits import turned_digits

from rootlet_runtime.bundle import Bundle
from rootlet_server.simulation import (
    Latency,
    LocalTraining,
    Pace,
    SampledPopulation,
    SimulationResult,
    simulate,
)

AT_ONCE, BUFFER, GOAL = 40, 20, 1.8
WAYS = {
    "synchronous": Pace(),
    "over-selection 1.3": Pace(over_selection=1.3),
    "buffered": Pace(buffer_size=BUFFER),
}
RATES = (0.01, 0.03, 0.1)


class Way:
    """A way to end rounds, on one bundle."""

    def __init__(self, pace: Pace, bundle: Bundle, digits: tuple, args: argparse.Namespace) -> None:
        self.pace, self.bundle, self.args = pace, bundle, args
        x, y = digits
        self.clients = (x[:-1000], y[:-1000])
        self.test = (x[-1000:], y[-1000:])

    def run(self, rate: float, seed: int) -> SimulationResult:
        """One federation."""
        x, y = self.clients
        rounds = self.args.rounds * (AT_ONCE // BUFFER if self.pace.buffer_size else 1)
        return simulate(
            self.bundle,
            SampledPopulation(x=x, y=y, clients=500, smallest=20, largest=60, alpha=0.3, seed=seed),
            rounds=rounds,
            cohort_size=AT_ONCE,
            seed=seed,
            training=LocalTraining(epochs=2, batch_size=10, learning_rate=rate),
            latency=Latency(speed_spread=4.0, network_spread=3.0, failure_rate=0.05, seed=seed),
            pace=self.pace,
            test=self.test,
        )


def reached(result: SimulationResult) -> float:
    """Mean accuracy of the last fifth of the rounds."""
    found = [each.central_metric for each in result.rounds]
    return float(np.mean(found[-max(1, len(found) // 5) :]))


def main() -> None:
    """Choose rates, run the drawings; the last line is the ratio against synchronous rounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="of the synchronous way")
    parser.add_argument("--drawings", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_heading("Time to an accuracy in simulated hours", ("torch", "flwr"))
    with tempfile.TemporaryDirectory() as folder:
        (bundle,), digits = turned_digits(Path(folder))
        ways = {name: Way(pace, bundle, digits, args) for name, pace in WAYS.items()}
        rates = {
            name: max(RATES, key=lambda rate: reached(way.run(rate, seed=100)))
            for name, way in ways.items()
        }
        hours: dict[str, list[float]] = {name: [] for name in WAYS}
        ends: dict[str, list[float]] = {name: [] for name in WAYS}
        for seed in range(args.drawings):
            results = {name: way.run(rates[name], seed) for name, way in ways.items()}
            bar = 0.95 * reached(results["synchronous"])
            for name, result in results.items():
                hours[name].append(result.hours_to(bar))
                ends[name].append(100 * reached(result))
    print_table(
        ("rounds", "rate", "hours to the bar", "accuracy in the end, %"),
        (
            (
                name,
                str(rates[name]),
                with_spread(hours[name], ".3f"),
                with_spread(ends[name], ".1f"),
            )
            for name in WAYS
        ),
    )
    ratios = [s / b for s, b in zip(hours["synchronous"], hours["buffered"], strict=True)]
    print(
        f"synchronous / buffered, hours: ratio {with_spread(ratios)} (goal at least {GOAL}: "
        f"{'met' if np.median(ratios) >= GOAL else 'missed'})"
    )


if __name__ == "__main__":
    main()
