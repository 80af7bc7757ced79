"""Every optimiser on one real task: steps and seconds to an accuracy, and peak memory.

    rootlet bench optimizers

A dense net (64-128-128-10) learns the scans of handwritten digits that scikit-learn ships: 1,200 to
learn from, 597 held out, measured every ten steps. A run ends at the accuracy or after 25 epochs.
Every row has the better of two rates a factor of three apart. Each run is a process of its own,
with one thread, forked from one that has loaded everything; time is of the processor, measuring
included, and memory what the run adds at its peak.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rootlet_runtime.durable import write_atomically
from rootlet_server.bench.table import markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TARGET = 0.95
EPOCHS, BATCH, MEASURED = 25, 60, 10
MODULES = ["rootlet_server.training.trained_base", "pytorch_optimizer", "sklearn.datasets"]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A row: an optimiser, its lower rate, and what else it is given."""

    words: str
    name: str
    rate: float
    sam_rho: float = 0.0
    averaging: str = "off"
    whole_batch: bool = False


ROWS = (
    Contestant(words="SGD, momentum", name="sgd", rate=0.03),
    Contestant(words="Adam", name="adam", rate=1e-3),
    Contestant(words="AdamW", name="adamw", rate=1e-3),
    Contestant(words="LAMB", name="lamb", rate=1e-2),
    Contestant(words="LARS", name="lars", rate=1.0),
    Contestant(words="Lion", name="lion", rate=3e-4),
    Contestant(words="Sophia-H", name="sophia", rate=0.3),
    Contestant(words="Shampoo", name="shampoo", rate=0.03),
    Contestant(words="SOAP", name="soap", rate=3e-3),
    Contestant(words="SAM around SGD", name="sgd", rate=0.03, sam_rho=0.05),
    Contestant(words="SAM around AdamW", name="adamw", rate=1e-3, sam_rho=0.05),
    Contestant(words="AdamW, EMA of the weights", name="adamw", rate=1e-3, averaging="ema"),
    Contestant(words="SGD, SWA", name="sgd", rate=0.03, averaging="swa"),
    Contestant(words="K-FAC", name="kfac", rate=0.03),
    Contestant(words="L-BFGS, whole batch", name="lbfgs", rate=0.3, whole_batch=True),
    Contestant(words="Hessian-free, whole batch", name="hessian_free", rate=0.3, whole_batch=True),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one run came to."""

    rate: float
    reached: bool
    steps: int
    seconds: float
    accuracy: float
    mebibytes: float


def run_one(row: Contestant, rate: float, target: float = TARGET, epochs: int = EPOCHS) -> Finding:
    """Train once, in this process."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415

    from rootlet_server.bench.task_digits import dense  # noqa: PLC0415
    from rootlet_server.training import (  # noqa: PLC0415
        Arrays,
        EngineConfig,
        FullTrainingConfig,
        OptimizerConfig,
        ScheduleConfig,
        TrainingData,
        train,
    )
    from rootlet_server.training.errors import NonFiniteError  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
    data = TrainingData(train=Arrays.of(x[:1200], y[:1200]), held_out=Arrays.of(x[1200:], y[1200:]))
    model = dense(10, 2)
    before, start = _memory("VmRSS"), time.process_time()
    config = FullTrainingConfig(
        epochs=epochs,
        batch_size=1200 if row.whole_batch else BATCH,
        optimizer=OptimizerConfig(
            name=row.name,  # type: ignore[arg-type]
            learning_rate=rate,
            sam_rho=row.sam_rho,
        ),
        schedule=ScheduleConfig(decay="constant", warmup=0.0),
        engine=EngineConfig(device="cpu"),
        averaging=row.averaging,  # type: ignore[arg-type]
        ema_decay=0.95,
        evaluate_every=1 if row.whole_batch else MEASURED,
        log_every=1000,
        target_metric=target,
    )
    try:
        trained = train(model, data, config)
        reached, steps, accuracy = trained.reached, trained.steps, trained.metric or 0.0
    except NonFiniteError as error:  # a rate too high for it; the other one may do
        reached, steps, accuracy = False, error.step, 0.0
    return Finding(
        rate=rate,
        reached=reached,
        steps=steps,
        seconds=time.process_time() - start,
        accuracy=accuracy,
        mebibytes=(_memory("VmHWM") - before) / 1024,
    )


def _memory(field: str) -> int:
    """KiB of this process, by Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition(f"{field}:")[2].split()[0])


def run_all(
    rows: Sequence[Contestant],
    *,
    store: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[Contestant, Finding]]:
    """Each row at both rates, in processes of their own, one at a time; the better is kept.

    Args:
        rows: the contestants.
        store: a file of finished rows; what it holds is not run again.
        progress: called with the name of each run as it begins.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    kept = json.loads(store.read_text()) if store is not None and store.is_file() else {}
    found = []
    for row in rows:
        if row.words not in kept:
            tries = []
            for rate in (row.rate, 3 * row.rate):
                progress(f"{row.words}, rate {rate:g}")
                with context.Pool(1, maxtasksperchild=1) as pool:
                    tries.append(pool.apply(partial(run_one, row, rate)))
            best = min(tries, key=lambda f: (not f.reached, f.steps if f.reached else -f.accuracy))
            kept[row.words] = asdict(best)
            if store is not None:
                write_atomically(store, json.dumps(kept).encode(), mode=0o644)
        found.append((row, Finding(**kept[row.words])))
    return found


def table(found: Sequence[tuple[Contestant, Finding]]) -> str:
    """The findings as Markdown."""
    body = [
        [
            row.words,
            f"{f.rate:g}",
            str(f.steps) if f.reached else f"not in {f.steps}",
            f"{f.seconds:.2f}",
            f"{100 * f.accuracy:.1f}",
            f"{f.mebibytes:.0f}",
        ]
        for row, f in found
    ]
    header = ["optimiser", "rate", f"steps to {TARGET:.0%}", "processor s", "accuracy then, %",
              "MiB added at the peak"]  # fmt: skip
    return markdown(header, body)


def main(console: Any, store: Path) -> None:
    """Run the table and print it; an interrupted run goes on where it stopped."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with console.status("starting") as status:
        found = run_all(ROWS, store=store, progress=status.update)
    console.print(table(found), soft_wrap=True, markup=False, highlight=False)
