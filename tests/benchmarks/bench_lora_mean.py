"""Averaging adapters whose A learns: A and B separately, or their products.

    python tests/benchmarks/bench_lora_mean.py

MNIST. A small base learns upright digits; devices hold 20 to 60 digits each, of few classes
(Dirichlet 0.3), all turned by 60 degrees, and train LoRA adapters with A and B by backprop. A round
asks 20 of 200. "separate" is FedAvg over A and B; "product" is the strategy `loramean`; "frozen A"
is FedAvg where A stays as it was drawn by calibration, for which the two are one. Each way gets the
local rate whose worse of two drawings is best, for near the largest rates some drawings diverge;
the figures are of other drawings, paired. The accuracy is that of the server's 1,000 turned digits,
mean of the last fifth of the rounds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from report import print_heading, print_table, with_spread
from turned_digits import turned_digits

from rootlet_runtime.bundle import Bundle
from rootlet_server.compiler import CompileConfig, LoraConfig
from rootlet_server.federation.strategies import Update, make_strategy
from rootlet_server.simulation import LocalTraining, SampledPopulation, simulate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.app import Message

RATES = (0.02, 0.04, 0.07, 0.1, 0.3)
CHOOSING = (100, 101)


class ProductMean(FedAvg):
    """`loramean` where Flower's strategies go."""

    def __init__(self) -> None:
        super().__init__(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
        )
        self.mean = make_strategy("loramean", {}, learning_rate=1.0)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple:
        """The mean of products; no metrics."""
        updates = []
        for reply in (each for each in replies if each.has_content()):
            arrays = next(iter(reply.content.array_records.values()))
            metrics = next(iter(reply.content.metric_records.values()))
            trained = {name: array.numpy() for name, array in arrays.items()}
            updates.append(
                Update(node=0, received=trained, trained=trained, loss=0.0,
                       num_examples=int(metrics["num-examples"]))
            )  # fmt: skip
        if not updates:
            return None, None
        found = self.mean.aggregate(server_round, updates[0].trained, updates)
        return ArrayRecord({name: Array(value) for name, value in found.items()}), None


@dataclass(frozen=True, kw_only=True)
class Way:
    """A bundle and how its adapters are averaged."""

    bundle: Bundle
    product: bool
    digits: tuple[np.ndarray, np.ndarray]
    args: argparse.Namespace

    def accuracy(self, rate: float, seed: int) -> float:
        """In per cent, at the end."""
        x, y = self.digits
        result = simulate(
            self.bundle,
            SampledPopulation(
                x=x[:-1000], y=y[:-1000], clients=200, smallest=20, largest=60, alpha=0.3, seed=seed
            ),
            ProductMean() if self.product else None,
            rounds=self.args.rounds,
            cohort_size=20,
            seed=seed,
            training=LocalTraining(epochs=self.args.epochs, batch_size=10, learning_rate=rate),
            test=(x[-1000:], y[-1000:]),
        )
        found = [each.central_metric for each in result.rounds]
        return 100 * float(np.mean(found[-max(1, len(found) // 5) :]))


def main() -> None:
    """Choose rates, run the drawings; the last line says which mean won, and by how much."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--drawings", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print_heading("Averaging adapters with a trained A", ("torch", "flwr"))
    configs = {
        kind: CompileConfig(
            rule="backprop", optimizer="sgd", adapter=LoraConfig(kind=kind, rank=args.rank)
        )
        for kind in ("lora", "calibrated")
    }
    with tempfile.TemporaryDirectory() as folder:
        found, digits = turned_digits(Path(folder), configs)
        bundles = dict(zip(configs, found, strict=True))
        ways = {
            name: Way(bundle=bundles[kind], product=product, digits=digits, args=args)
            for name, kind, product in (
                ("separate", "lora", False),
                ("product", "lora", True),
                ("frozen A", "calibrated", False),
            )
        }
        rates = {
            name: max(RATES, key=lambda rate: min(way.accuracy(rate, seed) for seed in CHOOSING))
            for name, way in ways.items()
        }
        found = {
            name: [way.accuracy(rates[name], seed) for seed in range(args.drawings)]
            for name, way in ways.items()
        }
    print_table(
        ("mean", "rate", "accuracy, %"),
        ((name, str(rates[name]), with_spread(found[name], ".2f")) for name in ways),
    )
    gains = [p - s for p, s in zip(found["product"], found["separate"], strict=True)]
    winner = "product" if np.median(gains) > 0 else "separate"
    print(f"product - separate, percentage points: {with_spread(gains)}: {winner} wins")


if __name__ == "__main__":
    main()
