"""Does feedback that is calibrated again at a later adapter help? Cosines of a CNN, and accuracy.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_refresh.py

Real data: scikit-learn's digits. The base, four convolutions, learns upright digits; the adapters
learn digits turned by a quarter, by DFA on an int8 base. Half-way the feedback is computed again at
the adapter (``compiler.refresh``), on the upright digits that it was calibrated on first, and
training goes on from the same point with the old feedback, with the new, and by backpropagation,
at one constant rate (0.02, in batches of 16, diverged).
The cosines are those of ``compiler.alignment``, all at that point, with true labels.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from models import cnn
from report import print_heading, print_table
from sklearn.datasets import load_digits
from torch.nn import functional as F

from rootlet_server.compiler import CompileConfig, LoraConfig, alignment, build
from rootlet_server.compiler.refresh import refreshed_feedback

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rootlet_server.compiler import AlignmentReport, Built

WIDTH, BATCH, RATE, CALIBRATION, TRAIN = 16, 32, 0.005, 128, 1200
CONFIG = CompileConfig(adapter=LoraConfig(rank=16))
START, OLD, NEW, EXACT = "at the start", "old feedback", "refreshed", "backprop"


@dataclass(frozen=True)
class Found:
    """One seed: a report for each moment, accuracies by what training went on with."""

    reports: dict[str, AlignmentReport]
    accuracies: dict[str, float]


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 8, 8] in [0, 1], three times the same channel, and labels."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(data.images).float().div(16).unsqueeze(1).repeat(1, 3, 1, 1)
    return x[order], torch.from_numpy(data.target).long()[order]


def pretrained(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """The base."""
    torch.manual_seed(seed)
    model = cnn(WIDTH)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def learn(
    built: Built, adapter: dict[str, Tensor], x: Tensor, y: Tensor, epochs: int
) -> dict[str, Tensor]:
    """The adapter after some epochs; the order of the examples is always the same."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                weights, rate = torch.ones(len(rows)), torch.tensor(RATE)
                adapter = built.step.train(
                    built.frozen, adapter, {}, x[rows], y[rows], weights, rate
                )[2]
    return adapter


def accuracy(built: Built, adapter: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return float((built.step.predict(built.frozen, adapter, x).argmax(1) == y).float().mean())


def study(seed: int, args: argparse.Namespace) -> Found:
    """One seed."""
    x, y = digits(seed)
    turned = x.rot90(1, (2, 3))
    base = pretrained(x[:TRAIN], y[:TRAIN], args.base_epochs, seed)
    built = build(base, x[:CALIBRATION], CONFIG)
    train, test = (turned[:TRAIN], y[:TRAIN]), (turned[TRAIN:], y[TRAIN:])
    middle = learn(built, built.adapter, *train, args.epochs)
    fresh = refreshed_feedback(built, middle, x[:CALIBRATION], CONFIG)
    by = {OLD: built, NEW: replace(built, frozen=built.frozen | fresh)}
    measured = (turned[:CALIBRATION], y[:CALIBRATION])
    reports = {START: alignment(built, *measured)}
    reports |= {way: alignment(b, *measured, adapter=middle) for way, b in by.items()}
    by[EXACT] = replace(built, step=replace(built.step, rule="backprop"))
    ends = {way: learn(b, middle, *train, args.epochs) for way, b in by.items()}
    accuracies = {way: accuracy(built, adapter, *test) for way, adapter in ends.items()}
    return Found(reports, accuracies | {START: accuracy(built, middle, *test)})


def main() -> None:
    """Run, print the cosines by layer, the accuracies, and the mean gain."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="before the refresh, and after it")
    parser.add_argument("--base-epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_heading("Refreshed feedback on a CNN", ("torch", "scikit-learn"))
    found = [study(seed, args) for seed in range(args.seeds)]
    moments = (START, OLD, NEW)
    rows = []
    for place, layer in enumerate(found[0].reports[START].layers):
        cosines = {m: [f.reports[m].layers[place].cosine or 0.0 for f in found] for m in moments}
        rows.append((layer.module, *(f"{statistics.mean(c):.3f}" for c in cosines.values())))
    print_table(("layer", *(f"cosine, {m}" for m in moments)), rows)
    ways = (START, OLD, NEW, EXACT)
    header = ("seed", "accuracy half-way", *(f"accuracy after, {w}" for w in ways[1:]))
    print_table(
        header,
        ((str(n), *(f"{f.accuracies[w]:.3f}" for w in ways)) for n, f in enumerate(found)),
    )
    gains = [100 * (f.accuracies[NEW] - f.accuracies[OLD]) for f in found]
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    print(f"refreshed less old feedback: {statistics.mean(gains):+.2f} points of accuracy ({each})")


if __name__ == "__main__":
    main()
