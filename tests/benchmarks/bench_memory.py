"""Peak memory of a process that trains: a bundle through rootlet_runtime against eager torch.

    python tests/benchmarks/bench_memory.py

Each value is the peak resident memory (VmHWM) of a fresh process that imports its libraries, loads
the model and trains the same adapters for some steps; the kinds of process take turns. The bundle
is made by the default configuration (int8 base, DFA, a frozen A, SGD); beside it stand bundles that
learn A too, that train by backpropagation on the same base, its derivative in int8 too, and by
backpropagation with gradient checkpointing. Growth is what a process adds after its imports. Then
import times: the wall time of a fresh interpreter that imports, less that of one that does not.

No row of a bundle should be above torch's; the last lines say what a frozen A saves.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from compiled import compile_case, peer_settings
from models import CASES, Case
from report import print_heading, print_table, quartiles, verdict, with_spread

from rootlet_server.compiler import LoraConfig

if TYPE_CHECKING:
    from rootlet_server.compiler import CompiledBundle

GOAL = 0.35  # of torch's peak at batch 1
GROWTH_GOAL = 0.6  # of torch's growth at the largest batch
HERE = Path(__file__).parent
PAGE_MIB = 4 / 1024  # the least that a growth counts as
ROOTLET, TORCH = "rootlet_runtime, int8 dfa", "torch eager"
A_LEARNS = "rootlet_runtime, int8 dfa, A learns"
BUNDLES = {
    "rootlet_runtime, the default rule": {},
    ROOTLET: {"base_dtype": "int8", "rule": "dfa"},
    A_LEARNS: {"rule": "dfa", "adapter": LoraConfig(kind="lora")},
    "rootlet_runtime, int8 backprop": {"rule": "backprop", "backward": "int8"},
    "rootlet_runtime, int8 checkpointed": {"rule": "backprop_checkpointed"},
}
IMPORTS = ("rootlet_runtime", "rootlet", "rootlet_runtime, onnxruntime", "torch", "torch, flwr")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    models = [name for name in CASES if name != "tiny"]
    parser.add_argument("--models", nargs="+", choices=CASES, default=models)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind")
    parser.add_argument("--steps", type=int, default=4, help="training steps in each")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.models, args.batches, args.runs, args.steps = ["tiny"], [2], 1, 2
    return args


def peaks_mib(*command: str) -> tuple[float, float]:
    """Peak memory in MiB of a fresh process, after its imports and at its end."""
    result = subprocess.run(
        [sys.executable, *command], check=True, capture_output=True, text=True, timeout=600
    )
    imported, trained = result.stdout.split()
    return int(imported) / 1024, int(trained) / 1024


def added(peaks: tuple[float, float]) -> float:
    """What a process adds after its imports, in MiB: a page at least, so that it divides."""
    return max(peaks[1] - peaks[0], PAGE_MIB)


def write_data(case: Case, compiled: CompiledBundle, examples: int, path: Path) -> str:
    """The examples and the peer's adapters; returns the path of the head."""
    x, y = case.batch(examples)
    scaled_a, head = peer_settings(compiled)
    arrays = {f"scaled_a/{module}": a.numpy() for module, a in scaled_a.items()}
    np.savez(path, x=x.numpy(), y=y.numpy(), **arrays)
    return head


def bench(name: str, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Every kind of process on one model, for each batch size."""
    bundles = {w: compile_case(CASES[name], folder / name, **s) for w, s in BUNDLES.items()}
    found = []
    for size in args.batches:
        data = folder / name / f"{size}.npz"
        head = write_data(CASES[name], bundles[ROOTLET], size * args.steps, data)
        tail = (str(size), "1")
        commands = {
            who: (HERE / "train_with_rootlet.py", bundle.path, data, *tail)
            for who, bundle in bundles.items()
        }
        commands |= {
            TORCH: (HERE / "train_with_torch.py", name, data, head, *tail),
        }
        peaks: dict[str, list[tuple[float, float]]] = {who: [] for who in commands}
        for _ in range(args.runs):
            for who, command in commands.items():
                peaks[who].append(peaks_mib(*map(str, command)))
        for who, own in peaks.items():
            pairs = list(zip(own, peaks[TORCH], strict=True))
            ratio = [a[1] / b[1] for a, b in pairs]
            growth = [added(a) / added(b) for a, b in pairs]
            row = {"model": name, "batch": size, "who": who, "peaks": own}
            found.append(row | {"ratio": ratio, "growth": growth})
    return found


def import_seconds(runs: int) -> dict[str, list[float]]:
    """Seconds that each import adds to a fresh interpreter; they take turns."""
    seconds: dict[str, list[float]] = {modules: [] for modules in IMPORTS}
    for number in range(runs + 1):
        empty = _start("pass")
        for modules in IMPORTS:
            took = _start(f"import {modules}") - empty
            if number:  # the first one fills the file cache
                seconds[modules].append(took)
    return seconds


def _start(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
    return time.perf_counter() - start


def print_verdicts(model: str, found: list[dict]) -> None:
    """One model's goals, whether any bundle is above torch, and what a frozen A saves."""
    rows = {who: [r for r in found if r["who"] == who] for who in BUNDLES}
    for who, own in rows.items():
        worst = max(quartiles(result["ratio"])[1] for result in own)
        goal = GOAL if who == ROOTLET else 1.0  # never above torch
        print(f"peak memory, {who} / {TORCH}, {model}, worst batch: ratio {verdict(worst, goal)}")
    last = rows[ROOTLET][-1]
    growth = f"ratio {verdict(quartiles(last['growth'])[1], GROWTH_GOAL)}"
    print(f"growth of memory, {ROOTLET} / {TORCH}, {model}, batch {last['batch']}: {growth}")
    for own, learns in zip(rows[ROOTLET], rows[A_LEARNS], strict=True):
        pairs = zip(own["peaks"], learns["peaks"], strict=True)
        spread = with_spread([added(a) / added(b) for a, b in pairs])
        print(f"growth of memory, A frozen / A learns, {model}, batch {own['batch']}: {spread}")


def main() -> None:
    """Run, print both tables, then the worst ratio of each model against the goal."""
    args = arguments()
    packages = ("torch", "flwr", "onnxruntime", "numpy")
    print_heading("Peak memory of a process that trains, and import times", packages)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            found += bench(name, args, Path(folder))
    rows = [
        (
            result["model"],
            str(result["batch"]),
            result["who"],
            f"{statistics.median(imported for imported, _ in result['peaks']):.0f}",
            with_spread([trained for _, trained in result["peaks"]], ".0f"),
            with_spread(result["ratio"]),
            with_spread(result["growth"]),
        )
        for result in found
    ]
    header = ("model", "batch", "process", "MiB imported", "MiB at its peak", "ratio to torch")
    header += ("growth to torch's",)
    print_table(header, rows)
    times = import_seconds(args.runs)
    print_table(("import", "seconds"), ((m, with_spread(s)) for m, s in times.items()))
    for model in args.models:
        print_verdicts(model, [r for r in found if r["model"] == model])


if __name__ == "__main__":
    main()
