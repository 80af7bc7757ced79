"""Does training collapse, and does the guard see it? A badly pre-trained ten-layer base.

    python tests/benchmarks/bench_stability.py [--seeds 6] [--out docs/results/stability.md]

Real data: scikit-learn's digits, turned by 60 degrees for the device. The base, a ten-layer MLP, is
stopped as soon as it gets 78 % of upright digits right. The device trains 450 examples, the guard
measures 150 others, and the accuracies are of 597 that neither has seen. Every arm runs the same
signed bundle through ``Trainer.fit``, int8 base and DFA, with the same examples in the same order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import print_heading, print_table
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import nn

from rootlet_runtime import Bundle, GuardConfig, RateSchedule, Trainer, signing
from rootlet_runtime.errors import DivergedError
from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle

DEPTH, WIDTH, BASE_ACCURACY = 10, 64, 0.78
EPOCHS, BATCH = 15, 16
COLLAPSED = 0.5  # of the best accuracy that any arm reaches from the same base
CONSTANT = RateSchedule(decay="constant", warmup=0.0)
DEFAULT = RateSchedule()
ADAM, SGD = (1e-3, 3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1, 3e-1)
CONFIGS: dict[str, tuple[tuple[float, ...], CompileConfig]] = {
    "calibrated A, r 32, adam": (ADAM, CompileConfig(optimizer="adam")),
    "lora, r 8, adam": (
        ADAM,
        CompileConfig(optimizer="adam", adapter=LoraConfig(rank=8, kind="lora")),
    ),
    "calibrated A, r 32, sgd": (SGD, CompileConfig()),
    "calibrated A, r 32, sgd, gradient norm at most 1": (SGD, CompileConfig(max_gradient_norm=1.0)),
}
ARMS: dict[str, tuple[RateSchedule, GuardConfig | None]] = {
    "constant": (CONSTANT, None),
    "warm-up, decay": (DEFAULT, None),
    "constant, guard": (CONSTANT, GuardConfig()),
    "**warm-up, decay, guard**": (DEFAULT, GuardConfig()),
}
Examples = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """The base and the device's examples; source and test accuracy of the base."""

    base: nn.Module
    source_x: np.ndarray
    source_accuracy: float
    train: Examples
    held_out: Examples
    test: Examples


@dataclass(frozen=True)
class Outcome:
    """One fit."""

    before: float
    after: float
    rolled_back: int
    reason: str


def make_task(seed: int) -> Task:
    """Digits dealt out anew, and a base that was not trained to its end."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    x = (digits.data[order] / 16).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    turned = rotate(x.reshape(-1, 8, 8), 60, axes=(1, 2), reshape=False, order=1)
    turned = np.ascontiguousarray(turned.reshape(len(x), 64), np.float32)
    base, accuracy = train_badly(x[:600], y[:600], seed)
    return Task(
        base,
        x[:600],
        accuracy,
        (turned[600:1050], y[600:1050]),
        (turned[1050:1200], y[1050:1200]),
        (turned[1200:], y[1200:]),
    )


def train_badly(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[nn.Module, float]:
    """Adam until 78 % of the source examples are right."""
    torch.manual_seed(seed)
    widths = [64, *[WIDTH] * (DEPTH - 1), 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    base = nn.Sequential(*layers[:-1])
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(base.parameters(), 2e-3)
    accuracy = 0.0
    while accuracy < BASE_ACCURACY:
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(base(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = float((base(inputs).argmax(1) == targets).float().mean())
    return base, accuracy


def run_arm(bundle: Bundle, task: Task, arm: str, rate: float, seed: int) -> Outcome:
    """Train one arm and test it; a refused training leaves the adapter of before."""
    schedule, guard = ARMS[arm]
    trainer = Trainer(bundle)
    before = trainer.evaluate(*task.test).metric
    rolled_back, reason = 0, ""
    try:
        result = trainer.fit(
            *task.train,
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=rate,
            rng=np.random.default_rng(seed),
            schedule=schedule,
            guard=guard,
            held_out=task.held_out,
        )
        rolled_back, reason = result.rolled_back, result.reason
    except DivergedError as error:
        reason = f"refused: {error}"
    return Outcome(before, trainer.evaluate(*task.test).metric, rolled_back, reason)


def compile_task(task: Task, config: CompileConfig, folder: Path) -> Bundle:
    """The bundle that every arm of a seed runs."""
    key, public = signing.generate_keypair()
    path = folder / "base.rootlet"
    compile_bundle(
        task.base,
        calibration_x=task.source_x[:128],
        config=config,
        name="deep",
        version=1,
        signing_key=key,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[public])


def main() -> None:
    """Run every arm at every rate over the seeds, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[tuple[str, float, str], list[Outcome]] = {}
    bases = []
    for seed in range(chosen.seeds):
        task = make_task(seed)
        bases.append(task.source_accuracy)
        for name in chosen.configs:
            rates, config = CONFIGS[name]
            with tempfile.TemporaryDirectory() as folder:
                bundle = compile_task(task, config, Path(folder))
                for rate, arm in itertools.product(rates, ARMS):
                    outcome = run_arm(bundle, task, arm, rate, seed)
                    results.setdefault((name, rate, arm), []).append(outcome)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        write_report(results, bases, chosen.configs)
    print(text.getvalue())
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text.getvalue())


def write_report(
    results: dict[tuple[str, float, str], list[Outcome]], bases: list[float], configs: list[str]
) -> None:
    """One table for each configuration, and what the guard said."""
    print_heading(
        "# Stability: a ten-layer base at 78 % of its own source\n",
        ("rootlet", "torch", "onnxruntime", "scikit-learn"),
    )
    print(f"\nAccuracy of the bases on their source: {_each(bases)}.\n")
    print("```\n" + (__doc__ or "").strip() + "\n```")
    for config in configs:
        arms = {key[1:]: outcomes for key, outcomes in results.items() if key[0] == config}
        befores = [outcome.before for outcome in next(iter(arms.values()))]
        best = [max(each) for each in zip(*(_after(o) for o in arms.values()), strict=True)]
        print(f"\n## {config}\n\nBefore training: {_each(befores)}. Best arm: {_each(best)}.")
        print_table(
            ("rate", "schedule", "mean", "worst", "by seed", "collapsed", "rollbacks"),
            [_row(rate, arm, outcomes, best) for (rate, arm), outcomes in arms.items()],
        )
    print(
        "Collapsed: less than half of the best arm's accuracy from the same base. A fit that the "
        "guard refuses leaves the adapter of before, and says so.\n\nThe first words of what the "
        "guard said, with how often:\n"
    )
    said = Counter(
        " ".join(outcome.reason.split(",")[0].split(" from ")[0].split())
        for outcomes in results.values()
        for outcome in outcomes
        if outcome.reason
    )
    for reason, count in said.most_common():
        print(f"- {reason}: {count}")


def _after(outcomes: list[Outcome]) -> list[float]:
    return [outcome.after for outcome in outcomes]


def _row(rate: float, arm: str, outcomes: list[Outcome], best: list[float]) -> list[str]:
    after = _after(outcomes)
    collapsed = sum(a < COLLAPSED * b for a, b in zip(after, best, strict=True))
    return [
        f"{rate:g}",
        arm,
        f"{100 * statistics.mean(after):.1f}",
        f"{100 * min(after):.1f}",
        _each(after),
        f"{collapsed} of {len(outcomes)}",
        " ".join(str(outcome.rolled_back) for outcome in outcomes),
    ]


def _each(values: list[float]) -> str:
    return " ".join(f"{100 * value:.1f}" for value in values)


if __name__ == "__main__":
    main()
