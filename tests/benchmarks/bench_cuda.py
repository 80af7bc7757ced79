"""Full training on a CUDA device: precisions, recomputation, compilation, a full device.

    python tests/benchmarks/bench_cuda.py

A pre-norm transformer of 12 layers (width 768, 256 tokens) learns random examples, with AdamW.
`train` and a plain torch loop take turns on the same batches in bf16; the ratio is of wall time
between two synchronisations, after the first steps. Every other line is `train` by itself, with
the device's peak of allocated memory.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

import torch
from bench_full_training import Transformer
from report import print_heading, print_table, quartiles, with_spread
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
from rootlet_server.training.errors import MemoryExhaustedError
from rootlet_server.training.events import Stepped

if TYPE_CHECKING:
    from rootlet_server.training.events import TrainingEvent

RATE, SKIP, GIB = 1e-4, 5, 2**30
RUNS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "bf16, recomputed": {"precision": "bf16", "checkpointing": True},
    "bf16, batch in 4 parts": {"precision": "bf16", "accumulation": 4},
    "bf16, inductor": {"precision": "bf16", "compile": "inductor"},
}


def model_of(args: argparse.Namespace) -> nn.Module:
    """The same every time."""
    torch.manual_seed(0)
    return Transformer(args.width, args.layers, args.heads)


def ours(model: nn.Module, x: Tensor, y: Tensor, batch: int, **engine: Any) -> tuple[float, float]:
    """(seconds a step after the first ones, last loss)."""
    marks: list[tuple[int, float, float]] = []

    def mark(event: TrainingEvent) -> None:
        if not isinstance(event, Stepped):
            return
        torch.cuda.synchronize()
        marks.append((event.step, time.perf_counter(), event.loss))

    config = FullTrainingConfig(
        epochs=1,
        batch_size=batch,
        optimizer=OptimizerConfig(learning_rate=RATE),
        schedule=ScheduleConfig(decay="constant", warmup=0.0),
        engine=EngineConfig(device="cuda", check_every=SKIP, **engine),
        log_every=SKIP,
    )
    train(model, TrainingData(train=Arrays.of(x, y)), config, on_event=mark)
    (first, start, _), (last, end, loss) = marks[0], marks[-1]
    return (end - start) / (last - first), loss


def by_hand(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    """Seconds a step of a plain loop in bf16 autocast."""
    model = model.to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    start, steps = 0.0, len(x) // batch
    for number, rows in enumerate(epoch_rows(len(x), batch, 0, 0)[:steps]):
        if number == SKIP:
            torch.cuda.synchronize()
            start = time.perf_counter()
        xs, ys = x[rows].to("cuda"), y[rows].to("cuda")
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            outputs = model(xs)
        nn.functional.cross_entropy(outputs.float(), ys).backward()
        optimizer.step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / (steps - SKIP)


def main() -> None:
    """Run everything; the last line is the ratio to a loop by hand."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("width", 768), ("layers", 12), ("heads", 12), ("tokens", 256),
                        ("batch", 64), ("steps", 25), ("rounds", 5)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    print_heading("Full training on CUDA", ("torch", "accelerate"))
    print(torch.cuda.get_device_name())
    x = torch.randn(args.batch * args.steps, args.tokens, args.width)
    y = torch.arange(len(x)) % 10
    rows = []
    for name, engine in RUNS.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds, loss = ours(model_of(args), x, y, args.batch, **engine)
        peak = torch.cuda.max_memory_allocated() / GIB
        rows.append((name, f"{1e3 * seconds:.1f}", f"{peak:.2f}", f"{loss:.4f}"))
        print(*rows[-1], flush=True)
    print_table(("run", "ms a step", "peak GiB", "last loss"), rows)

    torch.cuda.empty_cache()
    taken = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.97), dtype=torch.uint8, device="cuda")
    try:
        ours(model_of(args), x, y, args.batch)
    except MemoryExhaustedError as error:
        print(f"a full device: {error}")
    del taken

    ratios, times = [], []
    for number in range(args.rounds):
        torch.cuda.empty_cache()
        if number % 2:
            mine, _ = ours(model_of(args), x, y, args.batch, precision="bf16")
            hand = by_hand(model_of(args), x, y, args.batch)
        else:
            hand = by_hand(model_of(args), x, y, args.batch)
            mine, _ = ours(model_of(args), x, y, args.batch, precision="bf16")
        ratios.append(hand / mine)
        times.append((hand, mine))
    print(f"by hand, ms a step: {with_spread([1e3 * h for h, _ in times])}")
    print(f"train, ms a step: {with_spread([1e3 * m for _, m in times])}")
    low, median, high = quartiles(ratios)
    print(f"throughput on CUDA, train / by hand: ratio {median:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
