"""The product ``u M`` of an error with int8 feedback: the int8 error against dequantised M.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_feedback.py

A train graph holds this product once for each adapted layer; here a graph is six of them. Both
graphs hold the same int8 matrices: in one the engine makes them float32 when it loads the graph, in
the other it keeps them in int8 and each row of the error is rounded to int8 too. The graphs take
turns, with one thread, and times are processor times of one product. Memory is what opening the
session adds to a fresh process. The errors are ``softmax - one-hot`` of random logits.

The last table is the distance to float64's product, where M's rows are independent and where they
have a part of three times their own size in common, taken out (``broadcast.centred``) or not.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from report import print_heading, print_table, quartiles, verdict, with_spread
from torch import Tensor, nn

from rootlet_runtime.engines.onnx import AS_WRITTEN
from rootlet_server.compiler.broadcast import (
    centred,
    dequantised_product,
    int8_product,
    stays_int8,
)
from rootlet_server.compiler.int8 import onnx_translation, quantize_weight

LAYERS = 6
WAYS = {"float32": dequantised_product, "int8": int8_product}
OPEN = """
import sys, onnxruntime
from pathlib import Path
def kib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
Path(sys.argv[1]).read_bytes()
before = kib()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(kib() - before)
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", nargs="+", type=int, default=[10, 100, 384, 1000])
    parser.add_argument("--channels", nargs="+", type=int, default=[384, 1536])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slot-s", type=float, default=0.04, help="time of one slot")
    parser.add_argument("--quick", action="store_true", help="one size, once: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.entries, args.channels, args.batches = [8, 512], [512], [2]
        args.rounds, args.slot_s = 1, 0.0
    return args


class Products(nn.Module):
    """``u M`` for several M."""

    def __init__(self, way: str, entries: int, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.product, self.names = WAYS[way], range(LAYERS)
        for name in self.names:
            matrix = torch.randn(entries, channels, generator=generator)
            q, scale = quantize_weight(matrix, channel_dim=0)
            self.register_buffer(f"q{name}", q)
            self.register_buffer(f"scale{name}", scale)

    def forward(self, u: Tensor) -> tuple[Tensor, ...]:
        kept = [(getattr(self, f"q{n}"), getattr(self, f"scale{n}")) for n in self.names]
        return tuple(self.product(u, q, scale) for q, scale in kept)


def export(way: str, entries: int, channels: int, path: Path) -> None:
    """The products as a graph, written as the compiler does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Products(way, entries, channels),
            (torch.zeros(4, entries),),
            dynamo=True,
            verbose=False,
            opset_version=20,
            input_names=["u"],
            dynamic_shapes=[{0: torch.export.Dim("batch", min=2, max=64)}],
            custom_translation_table=onnx_translation(),
        ).save(path)


def session(path: Path) -> onnxruntime.InferenceSession:
    """A graph as devices open it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern = 1, False
    for key, value in AS_WRITTEN.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def added_mib(path: Path) -> float:
    """What opening a graph adds to the peak of a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", OPEN, path], check=True, capture_output=True, text=True, timeout=600
    )
    return int(run.stdout) / 1024


def errors(examples: int, entries: int) -> np.ndarray:
    """``softmax - one-hot``."""
    rng = np.random.default_rng(1)
    odds = np.exp(rng.standard_normal((examples, entries)))
    error = odds / odds.sum(1, keepdims=True)
    error[np.arange(examples), rng.integers(entries, size=examples)] -= 1
    return error.astype(np.float32)


def slot_us(graph: onnxruntime.InferenceSession, u: np.ndarray, seconds: float) -> float:
    """Median processor time of one product."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.process_time()
        graph.run(None, {"u": u})
        times.append(time.process_time() - start)
    return 1e6 * statistics.median(times) / LAYERS


def distances(entries: int, channels: int) -> list[str]:
    """Of the int8 product from the exact one, relative: independent, common, centred rows."""
    generator = torch.Generator().manual_seed(2)
    own = torch.randn(entries, channels, generator=generator, dtype=torch.float64)
    common = own + 3 * torch.randn(channels, generator=generator, dtype=torch.float64)
    u = torch.from_numpy(errors(32, entries)).double()
    u -= u.mean(1, keepdim=True)  # float32's rounding
    found = []
    for matrix in (own, common, centred(common)):
        product = int8_product(u, *quantize_weight(matrix, channel_dim=0))
        found.append(f"{float((product - u @ matrix).norm() / (u @ matrix).norm()):.3f}")
    return found


def main() -> None:
    """Run, print the tables, then the worst ratio where the compiler takes the int8 product."""
    args = arguments()
    title = "The product of an error with int8 feedback, one thread"
    print_heading(title, ("torch", "onnxruntime", "numpy"))
    rows, worst, memory = [], {}, []
    sizes = [(k, c) for k in args.entries for c in args.channels]
    with tempfile.TemporaryDirectory() as folder:
        for entries, channels in sizes:
            paths = {way: Path(folder) / f"{way}-{entries}-{channels}.onnx" for way in WAYS}
            for way, path in paths.items():
                export(way, entries, channels, path)
            graphs = {way: session(path) for way, path in paths.items()}
            mib = {way: added_mib(path) for way, path in paths.items()}
            taken = "int8" if stays_int8(entries, channels) else "float32"
            memory.append((str(entries), str(channels), *(f"{m:.1f}" for m in mib.values()), taken))
            for examples in args.batches:
                u, times = errors(examples, entries), {way: [] for way in WAYS}
                for _ in range(args.rounds):
                    for way, graph in graphs.items():
                        times[way].append(slot_us(graph, u, args.slot_s))
                pairs = zip(times["int8"], times["float32"], strict=True)
                ratio = [a / b for a, b in pairs]
                worst.setdefault(taken, []).append(quartiles(ratio)[1])
                spreads = (with_spread(t, ".0f") for t in (times["float32"], times["int8"]))
                size = (str(entries), str(channels), str(examples))
                rows.append((*size, *spreads, with_spread(ratio), taken))
    header = ("entries", "channels", "batch", "float32, us", "int8, us", "int8 / float32", "taken")
    print_table(header, rows)
    print_table(("entries", "channels", "float32, MiB", "int8, MiB", "taken"), memory)
    header = ("entries", "channels", "independent rows", "with a common part", "taken out")
    print_table(header, ((str(k), str(c), *distances(k, c)) for k, c in sizes))
    if "float32" in worst:
        print(f"int8 / float32 where float32 is taken, best: ratio {min(worst['float32']):.2f}")
    if "int8" in worst:
        print(f"int8 / float32 where int8 is taken, worst: ratio {verdict(max(worst['int8']), 1)}")


if __name__ == "__main__":
    main()
