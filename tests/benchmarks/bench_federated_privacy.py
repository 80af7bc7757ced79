"""Accuracy of a federation with device-level differential privacy, at epsilon 2, 4 and 8.

    python tests/benchmarks/bench_federated_privacy.py

MNIST. A small base learns upright digits; 2,000 devices hold 20 to 60 digits each, of few classes,
all turned by 60 degrees, and all take part in every round, as a server charges them: no
amplification by sampling is claimed. Each update is clipped, and Gaussian noise is on the sum. The
noise is what the accountant asks for the rounds; the clipping norm is the best of three, chosen on
a drawing of its own. Without privacy: the same rounds, neither clipped nor noisy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from report import print_heading, print_table, with_spread
from turned_digits import Digits, turned_digits

from rootlet_runtime.bundle import Bundle
from rootlet_server.privacy import noise_multiplier_for
from rootlet_server.simulation import (
    DevicePrivacy,
    LocalTraining,
    SampledPopulation,
    simulate,
)

DELTA, CLIPS, BUDGETS, RATE = 1e-5, (0.3, 1.0, 3.0), (8.0, 4.0, 2.0), 0.03


def accuracy(
    bundle: Bundle,
    digits: Digits,
    args: argparse.Namespace,
    privacy: DevicePrivacy | None,
    seed: int,
) -> float:
    """Of the last adapter, in per cent, on digits that no device holds."""
    x, y = digits
    found = simulate(
        bundle,
        SampledPopulation(
            x=x[:-1000], y=y[:-1000], clients=args.devices, smallest=20, largest=60, alpha=0.3,
            seed=seed,
        ),
        rounds=args.rounds,
        cohort_size=args.devices,
        seed=seed,
        privacy=privacy,
        training=LocalTraining(epochs=1, batch_size=10, learning_rate=RATE),
        test=(x[-1000:], y[-1000:]),
    )  # fmt: skip
    return 100 * found.rounds[-1].central_metric


def main() -> None:
    """One row a budget."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--drawings", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_heading("Accuracy at a privacy budget", ("torch", "dp-accounting"))
    with tempfile.TemporaryDirectory() as folder:
        (bundle,), digits = turned_digits(Path(folder))
        drawings = range(args.drawings)
        free = [accuracy(bundle, digits, args, None, seed) for seed in drawings]
        rows = [("no privacy", "", "", with_spread(free, ".1f"))]
        for budget in BUDGETS:
            noise = noise_multiplier_for(budget, DELTA, sample_rate=1.0, steps=args.rounds)
            ways = [DevicePrivacy(clipping_norm=c, noise_multiplier=noise) for c in CLIPS]
            best = max(ways, key=lambda way: accuracy(bundle, digits, args, way, seed=100))
            found = [accuracy(bundle, digits, args, best, seed) for seed in drawings]
            rows.append(
                (f"epsilon {budget:g}", f"{noise:.2f}", f"{best.clipping_norm:g}",
                 with_spread(found, ".1f"))
            )  # fmt: skip
    print_table(("budget", "noise multiplier", "clipping norm", "accuracy, %"), rows)
    print(f"delta {DELTA:g}, per device, zero-out-one; rounds {args.rounds}, every device in each")
    lost = np.median(free) - np.median(found)
    print(f"epsilon {BUDGETS[-1]:g} costs {lost:.1f} points")


if __name__ == "__main__":
    main()
