"""Instructions of a training step, counted by valgrind: DFA and backprop, int8 and float32.

    apt-get install valgrind; python tests/benchmarks/bench_instructions.py

A process trains a few steps through the engine, another one trains some more: the difference, over
the steps that it took more, is a step. Cachegrind counts every instruction of the process and knows
no AVX-512: the kernels are those of a processor with AVX2. Instructions are not time.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from compiled import CALIBRATION
from models import CASES
from report import print_heading, print_table

from rootlet_runtime import Bundle
from rootlet_server.compiler import CompileConfig, compile_bundle

RULES, DTYPES = ("dfa", "backprop"), ("int8", "float32")
FEW = 2
STEP = """
import sys
import numpy as np
from rootlet_runtime import Bundle
from rootlet_runtime.batches import Batch
from rootlet_runtime.engines import open_engine
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros
bundle = Bundle.load({path!r}, trusted_keys=[], allow_unsigned=True)
manifest = bundle.manifest
rng = np.random.default_rng(0)
x = rng.normal(size=({size}, *manifest.x.shape[1:])).astype(np.float32)
y = rng.integers(0, manifest.num_outputs, {size})
engine = open_engine("onnxruntime", bundle, 1)
start = TrainState(adapter=bundle.initial_adapter(), optimizer=zeros(manifest.optimizer_state))
engine.load_state(start)
batch = Batch(x, y, np.ones({size}, np.float32), {size})
for _ in range({steps}):
    engine.step(batch, 0.001)
"""


def counted(path: Path, size: int, steps: int) -> int:
    """Instructions of a process that takes so many steps."""
    program = STEP.format(path=str(path), size=size, steps=steps)
    valgrind = (
        "valgrind",
        "--tool=cachegrind",
        "--cache-sim=no",
        "--cachegrind-out-file=/dev/null",
    )
    python = os.path.realpath(sys.executable)  # a launcher would be all that is counted
    paths = os.pathsep.join(path for path in sys.path if path)
    found = subprocess.run(
        [*valgrind, python, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
    )
    refs = re.search(r"I\s+refs:\s+([\d,]+)", found.stderr)
    if refs is None:
        raise RuntimeError(f"valgrind counted nothing: {found.stderr[-2000:]}")
    return int(refs[1].replace(",", ""))


def main() -> None:
    """Compile, count, and print instructions by step and by multiply-accumulate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=["mlp-1024"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="steps whose mean is taken")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt-get install valgrind")
    torch.set_num_threads(1)
    print_heading("Instructions of a step", ("rootlet", "onnxruntime", "numpy"))
    rows, steps = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            case = CASES[name]
            for rule in RULES:
                for dtype in DTYPES:
                    path = Path(folder) / f"{name}-{rule}-{dtype}.rootlet"
                    compile_bundle(
                        case.model(),
                        calibration_x=case.batch(CALIBRATION, seed=2)[0],
                        config=CompileConfig(rule=rule, base_dtype=dtype),
                        name="benchmark",
                        version=1,
                        signing_key=None,
                        out=path,
                    )
                    few, more = (counted(path, args.batch, FEW + n) for n in (0, args.steps))
                    step = steps[name, rule, dtype] = (more - few) / args.steps
                    cost = Bundle.load(path, trusted_keys=[], allow_unsigned=True).manifest.cost
                    macs = [args.batch * cost[f"train_macs_{kind}"] for kind in DTYPES]
                    counts = (f"{count / 1e6:.2f}" for count in (step, *macs))
                    rows.append((name, rule, dtype, *counts, f"{step / sum(macs):.3f}"))
                    print(*rows[-1], flush=True)
    header = ("model", "rule", "base", "instructions, 10^6", "int8 MACs, 10^6",
              "float32 MACs, 10^6", "instructions / MAC")  # fmt: skip
    print_table(header, rows)
    for name in args.models:
        for dtype in DTYPES:
            ratio = steps[name, "dfa", dtype] / steps[name, "backprop", dtype]
            print(f"{dtype}, dfa / backprop, {name}, batch {args.batch}: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
