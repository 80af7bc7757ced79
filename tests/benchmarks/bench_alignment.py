"""What a cosine is worth: accuracy after adapting against alignment before, feedback by feedback.

    python tests/benchmarks/bench_alignment.py

The problem of ``rootlet_server.bench.feedback`` (digits turned by 60 degrees) with its budget and
its choice of rate, on an MLP and on a CNN. The share is of what backprop gains over the head alone.
``docs/decisions/0011-adapters-and-alignment.md`` has its table.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from report import print_heading, print_table

from rootlet_server.bench.feedback import (
    MODELS,
    RATES,
    accuracy,
    adapted,
    compiled,
    cosines,
    named,
    problem,
)
from rootlet_server.compiler import CompileConfig, LoraConfig, build

QUERIES: dict[str, dict[str, Any]] = {
    "mean Jacobian at queries and keys": {"target_modules": ("query", "key", "value", "out")},
    "attention=local": {"attention": "local"},
}
ARMS: dict[str, tuple[dict[str, Any], ...]] = {
    "MLP": (
        {"rule": "head_only"}, {"feedback": "random"}, {"feedback": "sign"},
        {"feedback_form": "sign"}, {}, {"rule": "backprop"},
    ),
    "CNN": ({"rule": "head_only"}, {}, {"feedback_positions": "each"}, {"rule": "backprop"}),
}  # fmt: skip
KINDS = ("calibrated", "lora_frozen_a", "lora")


def best(task: Any, built: Any, seed: int) -> float:
    """Accuracy on the test set at the rate that does best on the choosing set."""
    tries = [adapted(task, built, rate, seed) for rate in RATES]
    chosen = max(tries, key=lambda adapter: accuracy(built, adapter, task.choose))
    return accuracy(built, chosen, task.test)


def kind_of(task: Any, kind: Any, rule: Any) -> Any:
    """A float32 build with another adapter; a trained A has the rank of equal size, half."""
    adapter = LoraConfig(rank=8 if kind == "lora" else 16, kind=kind)
    config = CompileConfig(base_dtype="float32", rule=rule, adapter=adapter)
    return build(task.base, task.upright, config)


def queries_table(seeds: int) -> None:
    """Cosines of queries, keys and values, before adapting; nothing is trained but the base."""
    tasks = [problem(MODELS["transformer"], seed) for seed in range(seeds)]
    rows = []
    for words, options in QUERIES.items():
        adapter = LoraConfig(rank=16, target_modules=options.get("target_modules"))
        attention = options.get("attention", "skip")
        config = CompileConfig(base_dtype="float32", adapter=adapter, attention=attention)
        found: dict[str, list[float]] = {"query": [], "key": [], "value": []}
        for task in tasks:
            built = build(task.base, task.upright, config)
            for name in found:
                found[name] += cosines(task, built, (name,))
        low = [f"{statistics.mean(v):.2f} ({min(v):.2f})" for v in found.values()]
        rows.append((words, *low))
    print_table(("transformer", "queries: mean (lowest)", "keys", "values"), rows)


def mean(values: list[float]) -> str:
    """With its spread over seeds."""
    spread = f" +-{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Run and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", action="store_true", help="kinds of adapter on the MLP too")
    parser.add_argument("--queries", action="store_true", help="attention's cosines, only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_heading("Accuracy against alignment", ("torch", "numpy", "scikit-learn"))
    if args.queries:
        queries_table(args.seeds)
        return
    rows, kinds = [], []
    for name in args.models:
        tasks = [problem(MODELS[name], seed) for seed in range(args.seeds)]
        scores, lows = {}, {}
        for options in ARMS[name]:
            builds = [compiled(task, options) for task in tasks]
            scores[named(options)] = [
                best(t, b, s) for s, (t, b) in enumerate(zip(tasks, builds, strict=True))
            ]
            found = [cosines(t, b) for t, b in zip(tasks, builds, strict=True)]
            lows[named(options)] = [statistics.mean(each) for each in found if each]
        head, top = (statistics.mean(scores[f"rule={rule}"]) for rule in ("head_only", "backprop"))
        for arm, own in scores.items():
            share = (statistics.mean(own) - head) / (top - head)
            cosine = f"{statistics.mean(lows[arm]):.2f}" if lows[arm] else "-"
            rows.append((name, arm, cosine, mean(own), f"{100 * share:.0f} %"))
        for kind in KINDS if args.kinds and name == "MLP" else ():
            for rule in ("dfa", "backprop"):
                own = [best(t, kind_of(t, kind, rule), s) for s, t in enumerate(tasks)]
                kinds.append((name, kind, rule, mean(own)))
    print_table(("model", "arm", "mean cosine", "accuracy", "of backprop's gain"), rows)
    if kinds:
        print_table(("model", "adapter", "rule", "accuracy"), kinds)


if __name__ == "__main__":
    main()
