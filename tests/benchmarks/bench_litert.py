"""Step time, memory and size of the two engines on one bundle: LiteRT beside ONNX Runtime.

    python tests/benchmarks/bench_litert.py

Needs the extras ``server`` and ``litert-export``. The train graph runs through the engine's
``step``, with one thread; the engines take turns in slots of a fraction of a second, and each ratio
is between two slots of the same round, in processor time. Memory is the peak of a fresh process
that trains four steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from bench_step_time import LEARNING_RATE, measure
from compiled import CALIBRATION
from models import CASES
from report import print_heading, print_table, quartiles, with_spread

from rootlet_runtime import Bundle
from rootlet_runtime.batches import Batch
from rootlet_runtime.engines import open_engine
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros
from rootlet_server.compiler import CompileConfig, compile_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINES = ("onnxruntime", "litert")
TRAIN = """
import sys
import numpy as np
sys.path.insert(0, {here!r})
from peak import peak_kib
from rootlet_runtime import Bundle, Trainer
bundle = Bundle.load({path!r}, trusted_keys=[], allow_unsigned=True)
rng = np.random.default_rng(0)
x = rng.normal(size=(4 * {size}, *bundle.manifest.x.shape[1:])).astype(np.float32)
y = rng.integers(0, bundle.manifest.num_outputs, len(x))
options = dict(epochs=1, batch_size={size}, learning_rate=0.01, rng=rng)
Trainer(bundle, engine={engine!r}).fit(x, y, **options)
print(peak_kib() / 1024)
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    models = ["mlp-1024", "block-d128-t32", "block-d384-t64"]
    parser.add_argument("--models", nargs="+", choices=CASES, default=models)
    parser.add_argument("--dtypes", nargs="+", default=["int8", "float32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slot-s", type=float, default=0.1, help="time of one slot")
    return parser.parse_args()


def step(bundle: Bundle, engine_name: str, batch: Batch) -> Callable[[], float]:
    """One step in an engine that holds the bundle's initial adapter."""
    engine = open_engine(engine_name, bundle, num_threads=1)
    optimizer = zeros(bundle.manifest.optimizer_state)
    engine.load_state(TrainState(adapter=bundle.initial_adapter(), optimizer=optimizer))
    return lambda: engine.step(batch, LEARNING_RATE)[0]


def peak(path: Path, engine: str, size: int) -> float:
    """MiB of a process that trains four steps."""
    here = str(Path(__file__).parent)
    program = TRAIN.format(here=here, path=str(path), engine=engine, size=size)
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return float(found.stdout.split()[-1])


def main() -> None:
    """Run, print both tables, then the ratio of the time of each model in its int8 form."""
    args = arguments()
    torch.set_num_threads(1)
    packages = ("onnxruntime", "ai-edge-litert", "litert-torch", "torch", "numpy")
    print_heading("LiteRT beside ONNX Runtime, one thread", packages)
    rows, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            case = CASES[name]
            for dtype in args.dtypes:
                path = Path(folder) / f"{name}-{dtype}.rootlet"
                compile_bundle(
                    case.model(),
                    calibration_x=case.batch(CALIBRATION, seed=2)[0],
                    config=CompileConfig(base_dtype=dtype, litert_batches=tuple(args.batches)),
                    name="benchmark",
                    version=1,
                    signing_key=None,
                    out=path,
                )
                bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
                files = {key: entry.size for key, entry in bundle.manifest.files.items()}
                tflite = files.pop("model.tflite")
                onnx = sum(size for key, size in files.items() if key != "adapter.safetensors")
                sizes.append((name, dtype, f"{onnx / 1e6:.2f}", f"{tflite / 1e6:.2f}"))
                for size in args.batches:
                    x, y = case.batch(size)
                    batch = Batch(x.numpy(), y.numpy(), np.ones(size, np.float32), size)
                    steps = {engine: step(bundle, engine, batch) for engine in ENGINES}
                    times = measure(steps, args.rounds, args.slot_s)
                    onnx_ms, litert_ms = ([1e3 * cpu for cpu, _ in times[e]] for e in ENGINES)
                    ratios = [a / b for a, b in zip(litert_ms, onnx_ms, strict=True)]
                    peaks = [f"{peak(path, engine, size):.0f}" for engine in ENGINES]
                    middles = (f"{quartiles(values)[1]:.2f}" for values in (onnx_ms, litert_ms))
                    rows.append((name, dtype, str(size), *middles, with_spread(ratios), *peaks))
    header = ("model", "base", "batch", "onnxruntime, ms", "litert, ms", "litert / onnxruntime",
              "onnxruntime, peak MiB", "litert, peak MiB")  # fmt: skip
    print_table(header, rows)
    print_table(("model", "base", "ONNX graphs and base.bin, MB", "model.tflite, MB"), sizes)


if __name__ == "__main__":
    main()
