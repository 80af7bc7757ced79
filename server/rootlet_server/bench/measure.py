"""What a step costs: MACs, time of the compiled graphs in turn, peak memory, bytes."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_runtime import Bundle
from rootlet_runtime.batches import gather
from rootlet_runtime.energy import Work, count_work
from rootlet_runtime.engines import Engine, open_engine
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import zeros
from rootlet_server.bench.arms import ARMS
from rootlet_server.bench.suite import TASKS, drawn
from rootlet_server.bench.summary import CONTROL
from rootlet_server.compiler.compile import compile_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlet_server.bench.problem import Problem
    from rootlet_server.compiler.compile import CompiledBundle

ROUNDS = 40
MEMORY_STEPS = 10
PEAK = Path(__file__).with_name("peak_main.py")


@dataclass(frozen=True, kw_only=True)
class CostCell:
    """The compiled steps of one task's rows, timed in turn in one process with one thread."""

    task: str
    arms: tuple[str, ...]
    arm: str = "cost"
    seed: int = 0
    version: int = 2

    @property
    def key(self) -> str:
        """A digest of the settings."""
        text = json.dumps({"cost": asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self) -> dict[str, Any]:
        """MACs for each example, milliseconds of a step, peak MiB of a process, bytes."""
        started = time.monotonic()
        problem, size = drawn(self.task, self.seed), TASKS[self.task].batch_size
        with tempfile.TemporaryDirectory() as folder:
            compiled = {
                arm: _compile(arm, self.task, problem, Path(folder) / arm) for arm in self.arms
            }
            times = _step_times(compiled, problem, size)
            data = Path(folder) / "data.npz"
            count = size * MEMORY_STEPS
            rows = np.arange(count) % len(problem.train)
            np.savez(data, x=problem.train.x[rows].numpy(), y=problem.train.y[rows].numpy())
            rows_of_table = {
                arm: {
                    **bundle.manifest.cost,
                    "step_ms": statistics.median(times[arm]) * 1e3,
                    "of_backprop": _ratio(times[arm], times.get(CONTROL)),
                    "estimated_uj": 1e6 * _work(bundle.manifest.cost, size).estimated_j,
                    "peak_mib": _peak_mib(bundle.path, data, size),
                    "bundle_bytes": _bytes_of(bundle.path),
                    "update_bytes": 4 * sum(v.numel() for v in bundle.built.adapter.values()),
                }
                for arm, bundle in compiled.items()
            }
        return {
            "key": self.key,
            **asdict(self),
            "batch_size": size,
            "costs": rows_of_table,
            "seconds": time.monotonic() - started,
        }


def _ratio(own: list[float], control: list[float] | None) -> float | None:
    """Median over paired steps; None where the control was not asked for."""
    if control is None:
        return None
    return statistics.median(a / b for a, b in zip(own, control, strict=True))


def _work(cost: Mapping[str, int], size: int) -> Work:
    return count_work(cost, train_examples=size, train_batches=1)


def _compile(arm: str, task: str, problem: Problem, out: Path) -> CompiledBundle:
    return compile_bundle(
        problem.model,
        calibration_x=problem.calibration_x,
        config=ARMS[arm].config(problem, 0),
        name=f"bench-{task}",
        version=1,
        signing_key=None,
        out=out,
    )


def _step_times(
    compiled: dict[str, CompiledBundle], problem: Problem, size: int
) -> dict[str, list[float]]:
    """Seconds of each step; the rows take turns, so that what disturbs one disturbs all."""
    x, y = problem.train.x.numpy(), problem.train.y.numpy()
    batch = gather(x, y, np.arange(size), size)
    engines = {}
    for arm, bundle in compiled.items():
        engines[arm] = _ready(Bundle.load(bundle.path, trusted_keys=[], allow_unsigned=True))
    times: dict[str, list[float]] = {arm: [] for arm in engines}
    for number in range(ROUNDS + 2):
        for arm, engine in engines.items():
            start = time.perf_counter()
            engine.step(batch, 1e-4)
            if number > 1:  # the first ones load the graph and touch its memory
                times[arm].append(time.perf_counter() - start)
    return times


def _ready(bundle: Bundle) -> Engine:
    engine = open_engine("onnxruntime", bundle, num_threads=1)
    optimizer = zeros(bundle.manifest.optimizer_state)
    engine.load_state(TrainState(adapter=bundle.initial_adapter(), optimizer=optimizer))
    return engine


def _peak_mib(bundle: Path, data: Path, batch_size: int) -> float:
    """Peak resident memory of a fresh process that trains, in MiB."""
    command = [sys.executable, str(PEAK), str(bundle), str(data), str(batch_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return int(done.stdout) / 1024


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
