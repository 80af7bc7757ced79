"""Full training against a loop written by hand, and what recomputing activations saves.

    python tests/benchmarks/bench_full_training.py

Throughput: `rootlet_server.training.train` and a plain torch loop train the same model on the same
batches with the same AdamW, one thread, float32, taking turns; the ratio is of processor time for
the same number of steps, of two runs of one round. Both must end with the same weights.

Checkpointing: a transformer of 12 layers (width 192, 64 tokens, batch 32) trains in processes of
its own, with and without. Activation memory is what the process's peak grows by when the batch
does: its peak after steps of 32 less its peak after steps of 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import torch
from peak import peak_kib
from report import print_heading, print_table, quartiles, verdict, with_spread
from torch import Tensor, nn

from rootlet_server.training import (
    Arrays,
    EngineConfig,
    FullTrainingConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingData,
    train,
)
from rootlet_server.training.data import epoch_rows

if TYPE_CHECKING:
    from rootlet_server.training.events import TrainingEvent

THROUGHPUT_GOAL, MEMORY_GOAL, TIME_GOAL = 0.95, 0.5, 1.4
RATE, BATCH = 1e-3, 32
# glibc keeps what was freed, and a peak would count it: blocks from 64 KiB on go back at once.
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}
WIDTH, TOKENS, LAYERS = 192, 64, 12


class Transformer(nn.Module):
    """Pre-norm layers on [N, tokens, width], mean pooling, ten logits."""

    def __init__(self, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] to [N, 10]."""
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x.mean(1))
        return out


def problem(
    width: int, layers: int, tokens: int, examples: int
) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and examples, the same every time."""
    torch.manual_seed(0)
    model = Transformer(width, layers)
    return model, torch.randn(examples, tokens, width), torch.arange(examples) % 10


def by_hand(model: nn.Module, x: Tensor, y: Tensor, steps: int, skip: int) -> float:
    """Seconds of processor time for the steps after the first ``skip``."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    start = 0.0
    for number, rows in enumerate(epoch_rows(len(x), BATCH, 0, 0)[:steps]):
        if number == skip:
            start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return time.process_time() - start


def by_rootlet(model: nn.Module, x: Tensor, y: Tensor, skip: int) -> float:
    """The same by ``train``, between its events."""
    marks: list[float] = []

    def mark(_: TrainingEvent) -> None:
        marks.append(time.process_time())

    config = FullTrainingConfig(
        epochs=1,
        batch_size=BATCH,
        optimizer=OptimizerConfig(learning_rate=RATE),
        schedule=ScheduleConfig(decay="constant", warmup=0.0),
        engine=EngineConfig(device="cpu"),
        log_every=skip,
    )
    train(model, TrainingData(train=Arrays.of(x, y)), config, on_event=mark)
    return marks[-1] - marks[0]


def throughput(args: argparse.Namespace) -> list[float]:
    """Hand time by ours, a ratio for each round.

    Raises:
        SystemExit: they do not train the same.
    """
    ratios, rows, skip = [], [], 5
    for number in range(args.rounds):
        model, x, y = problem(args.width, args.layers, args.tokens, BATCH * args.steps)
        twin, _, _ = problem(args.width, args.layers, args.tokens, 1)
        twin.load_state_dict(model.state_dict())
        if number % 2:
            ours, hand = by_rootlet(twin, x, y, skip), by_hand(model, x, y, args.steps, skip)
        else:
            hand, ours = by_hand(model, x, y, args.steps, skip), by_rootlet(twin, x, y, skip)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            if not torch.allclose(a, b, atol=1e-6):
                raise SystemExit("the two loops do not train the same weights")
        ratios.append(hand / ours)
        rows.append((hand, ours))
    print_table(
        ("loop", "processor s"),
        (
            ("by hand", with_spread([h for h, _ in rows])),
            ("train", with_spread([o for _, o in rows])),
        ),
    )
    return ratios


def child(settings: dict) -> None:
    """In a process of its own: KiB that the batch adds, and seconds a step."""
    torch.set_num_threads(1)
    model, x, y = problem(settings["width"], settings["layers"], settings["tokens"], 4 * BATCH)

    def run(batch: int, steps: int) -> None:
        config = FullTrainingConfig(
            epochs=1,
            batch_size=batch,
            engine=EngineConfig(device="cpu", checkpointing=settings["checkpointing"]),
        )
        rows = batch * steps
        train(model, TrainingData(train=Arrays.of(x[:rows], y[:rows])), config)

    run(1, 3)
    before, start = peak_kib(), time.process_time()
    run(BATCH, settings["steps"])
    print(json.dumps([peak_kib() - before, time.process_time() - start]))


def checkpointing(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(memory ratios, time ratios), one of each a round."""
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(args.checkpoint_rounds):
        for on, runs in found.items():
            settings = {"width": args.width, "layers": args.layers, "tokens": args.tokens,
                        "steps": args.checkpoint_steps, "checkpointing": on}  # fmt: skip
            out = subprocess.run(
                [sys.executable, __file__, "--child", json.dumps(settings)],
                check=True, capture_output=True, text=True, timeout=900, env=os.environ | GIVE_BACK,
            ).stdout  # fmt: skip
            runs.append(tuple(json.loads(out.splitlines()[-1])))
    print_table(
        ("activations", "MiB added by the batch", "processor s"),
        (
            (
                "recomputed" if on else "kept",
                with_spread([kib / 1024 for kib, _ in runs], ".0f"),
                with_spread([seconds for _, seconds in runs]),
            )
            for on, runs in found.items()
        ),
    )
    pairs = list(zip(found[True], found[False], strict=True))
    return [a[0] / b[0] for a, b in pairs], [a[1] / b[1] for a, b in pairs]


def main() -> None:
    """Run both and print a line for each goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="of each loop in a round")
    parser.add_argument("--checkpoint-rounds", type=int, default=3)
    parser.add_argument("--checkpoint-steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny, once: does it run?")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.width, args.layers, args.tokens = WIDTH, LAYERS, TOKENS
    if args.child:
        child(json.loads(args.child))
        return
    if args.quick:
        args.rounds = args.checkpoint_rounds = args.checkpoint_steps = 1
        args.steps, args.width, args.layers, args.tokens = 10, 32, 2, 8
    torch.set_num_threads(1)
    print_heading("Full training", ("torch", "accelerate"))
    loop_layers, loop = args.layers, argparse.Namespace(**vars(args))
    loop.layers = min(4, loop_layers)
    ratio = quartiles(throughput(loop))[1]
    memory, seconds = (quartiles(ratios)[1] for ratios in checkpointing(args))
    print(f"activation memory, recomputed / kept: ratio {verdict(memory, MEMORY_GOAL)}")
    print(f"time, recomputed / kept: ratio {verdict(seconds, TIME_GOAL)}")
    met = "met" if ratio >= THROUGHPUT_GOAL else "missed"
    print(f"throughput, train / by hand: ratio {ratio:.2f} (goal at least 0.95: {met})")


if __name__ == "__main__":
    main()
