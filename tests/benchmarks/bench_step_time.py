"""Time of one training step: a bundle's int8 DFA graph against eager torch's backpropagation.

    python tests/benchmarks/bench_step_time.py

Everything trains the same adapters (those of the default configuration) of the same model on the
same batch, with one thread. The graphs run as ``Trainer.fit`` runs them, through the engine's
``step``. All contestants take turns in slots of a fraction of a second; a slot counts by the median
of its steps, without the first, and each ratio is between two slots of the same round.

The ratios are given of processor time and of wall time. With one thread these agree on a quiet
machine; on a shared one, wall time also counts the turns of other programs, so the goal is held to
processor time.

Two goals: against eager torch, and against backpropagation as a graph in the same engine, whose
products with the base are in int8 both ways (``CompileConfig.backward``); that graph with its
derivative in float stands beside it. ``A learns`` is the DFA graph with ``kind="lora"``: it stores
the layers' inputs, which a frozen A does not.

The peer is checked to be the same training: its losses must equal those of the float32 backprop
graph.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from compiled import compile_case, peer_settings
from models import CASES, Case, EagerPeer
from report import print_heading, print_table, quartiles, verdict, with_spread

from rootlet_runtime import Bundle
from rootlet_runtime.batches import Batch
from rootlet_runtime.engines import open_engine
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros
from rootlet_server.compiler import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from rootlet_runtime.engines import Engine
    from rootlet_server.compiler import CompiledBundle

    Step = Callable[[], float]

GOAL = 0.35
BACKPROP_GOAL = 0.6  # of the time of backprop with the same base, in int8 both ways
DEEP, DEEP_GOAL = "4-blocks-d384-t64", 0.25
LEARNING_RATE = 0.01
DEFAULT = "the default rule"
GRAPHS = {
    DEFAULT: {},
    "int8 dfa": {"base_dtype": "int8", "rule": "dfa"},
    "int8 dfa, A learns": {"rule": "dfa", "adapter": LoraConfig(kind="lora")},
    "int8 backprop": {"base_dtype": "int8", "rule": "backprop", "backward": "int8"},
    "int8 backprop, float back": {"base_dtype": "int8", "rule": "backprop"},
    "float32 dfa": {"base_dtype": "float32", "rule": "dfa"},
    "float32 backprop": {"base_dtype": "float32", "rule": "backprop"},
}
PEER = "torch eager"
# Rounding only: float32 in another order, through at most four blocks and three updates.
SAME_LOSS = 1e-3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    models = [name for name in CASES if name != "tiny"]
    parser.add_argument("--models", nargs="+", choices=CASES, default=models)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slot-s", type=float, default=0.15, help="time of one slot")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.models, args.batches, args.rounds, args.slot_s = ["tiny"], [2], 1, 0.0
    return args


def open_graph(path: Path) -> Engine:
    """The default engine with the bundle's initial adapter, as ``Trainer`` opens it."""
    bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
    engine = open_engine("onnxruntime", bundle, num_threads=1)
    optimizer = zeros(bundle.manifest.optimizer_state)
    state = TrainState(adapter=bundle.initial_adapter(), optimizer=optimizer, steps=0)
    engine.load_state(state)
    return engine


def graph_step(path: Path, x: Tensor, y: Tensor) -> Step:
    """One step of a bundle's train graph."""
    engine = open_graph(path)
    batch = Batch(x.numpy(), y.numpy(), np.ones(len(x), np.float32), len(x))
    return lambda: engine.step(batch, LEARNING_RATE)[0]


def peer_step(case: Case, compiled: CompiledBundle, x: Tensor, y: Tensor) -> Step:
    """One step of the peer."""
    peer = EagerPeer(case.model(), *peer_settings(compiled), LEARNING_RATE)
    return lambda: peer.step(x, y)


def check_same_training(peer: Step, graph: Step) -> None:
    """The peer and the float32 backprop graph see the same losses.

    Raises:
        SystemExit: they do not, and the comparison would mean nothing.
    """
    for number in range(1, 4):
        expected, found = graph(), peer()
        if abs(found - expected) > SAME_LOSS * abs(expected):
            raise SystemExit(f"step {number}: torch's loss is {found}, the graph's {expected}")


def slot(step: Step, seconds: float) -> tuple[float, float]:
    """Median processor and wall time of a step, the first left out; at least two are timed."""
    step()
    cpu, wall = [], []
    end = time.perf_counter() + seconds
    while len(wall) < 2 or time.perf_counter() < end:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        step()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return statistics.median(cpu), statistics.median(wall)


def measure(
    steps: dict[str, Step], rounds: int, slot_s: float
) -> dict[str, list[tuple[float, float]]]:
    """Times of a step for each contestant and round; the order turns round every time."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order = list(steps)
    for name in order:
        slot(steps[name], slot_s)
    for _ in range(rounds):
        for name in order:
            times[name].append(slot(steps[name], slot_s))
        order.reverse()
    return times


@dataclass(frozen=True, kw_only=True)
class Result:
    """One contestant on one model and batch; a value for each round."""

    model: str
    batch: int
    who: str
    cpu_ms: list[float]
    cpu_ratio: list[float]
    wall_ratio: list[float]

    def row(self) -> tuple[str, ...]:
        """Its line of the table."""
        spreads = (with_spread(v) for v in (self.cpu_ms, self.cpu_ratio, self.wall_ratio))
        return self.model, str(self.batch), self.who, *spreads


def bench(name: str, args: argparse.Namespace, folder: Path) -> list[Result]:
    """All contestants on one model."""
    case, found = CASES[name], []
    compiled = {graph: compile_case(case, folder / name, **s) for graph, s in GRAPHS.items()}
    for size in args.batches:
        x, y = case.batch(size)
        steps = {PEER: peer_step(case, compiled["float32 backprop"], x, y)}
        steps |= {graph: graph_step(bundle.path, x, y) for graph, bundle in compiled.items()}
        check_same_training(steps[PEER], steps["float32 backprop"])
        times = measure(steps, args.rounds, args.slot_s)
        peer = times[PEER]
        for who, own in times.items():
            result = Result(
                model=name,
                batch=size,
                who=who,
                cpu_ms=[1e3 * cpu for cpu, _ in own],
                cpu_ratio=[a[0] / b[0] for a, b in zip(own, peer, strict=True)],
                wall_ratio=[a[1] / b[1] for a, b in zip(own, peer, strict=True)],
            )
            found.append(result)
    return found


def main() -> None:
    """Run, print the table, then the ratio of each kind of model against the goal."""
    args = arguments()
    torch.set_num_threads(1)
    print_heading("Time of one training step, one thread", ("torch", "onnxruntime", "numpy"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            found += bench(name, args, Path(folder))
    header = ("model", "batch", "contestant", "processor ms", "ratio to torch", "ratio, wall time")
    print_table(header, (result.row() for result in found))
    for model in args.models:
        default, int8, learns, backprop = (
            [r for r in found if r.model == model and r.who == who]
            for who in (DEFAULT, "int8 dfa", "int8 dfa, A learns", "int8 backprop")
        )
        worst = max(quartiles(r.cpu_ratio)[1] for r in int8)
        goal = DEEP_GOAL if model == DEEP else GOAL
        print(f"int8 dfa / {PEER}, {model}, worst batch: ratio {verdict(worst, goal)}")
        for own, other in zip(int8, learns, strict=True):
            ratios = [a / b for a, b in zip(own.cpu_ms, other.cpu_ms, strict=True)]
            spread = with_spread(ratios)
            print(f"int8 dfa, A frozen / A learns, {model}, batch {own.batch}: ratio {spread}")
        for arm in (default, int8):
            for own, other in zip(arm, backprop, strict=True):
                ratios = [a / b for a, b in zip(own.cpu_ms, other.cpu_ms, strict=True)]
                spread = f"{with_spread(ratios)}, {verdict(quartiles(ratios)[1], BACKPROP_GOAL)}"
                print(f"{own.who} / int8 backprop, {model}, batch {own.batch}: ratio {spread}")


if __name__ == "__main__":
    main()
