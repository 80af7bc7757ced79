"""Five tasks in a row: what a device forgets, and what each remedy keeps.

The base knows upright digits. Task i turns them by ``ANGLES[i]``; the device trains on one task
after the other, with the trainer that devices run, and is tested on all of them after each. So row
i of the accuracy matrix belongs to the adapter after task i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from rootlet_runtime import Trainer
from rootlet_runtime.ewc import consolidated
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings, quota_bytes
from rootlet_server.bench.problem import CALIBRATION_EXAMPLES, drawn_for_relu, share, train_base
from rootlet_server.bench.task_digits import dense
from rootlet_server.bench.task_handwriting import pictures
from rootlet_server.compiler import CompileConfig, compile_bundle
from rootlet_server.compiler.config import PrivacyConfig

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import nn

    from rootlet_runtime import Bundle
    from rootlet_runtime.ewc import ElasticWeights
    from rootlet_runtime.tensors import Arrays

    Floats = npt.NDArray[np.float32]
    Examples = tuple[Floats, npt.NDArray[np.int64]]

ANGLES = (36.0, 72.0, 108.0, 144.0, 180.0)
"""Degrees; 6 turned by 180 degrees is 9, so that the tasks contradict each other."""
REPLAY_SHARE = 0.02
BATCH_SIZE = 16
"""Fresh examples of a step."""
EWC_EXAMPLES = 200
"""Of each task, for its Fisher information."""

Keep = Literal["last", "average", "per_task"]


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One drawing: a base trained on the source domain, and each task's data."""

    model: nn.Module
    calibration_x: Floats
    train: tuple[Examples, ...]
    test: tuple[Examples, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a device goes on learning.

    Attributes:
        name: as in the table.
        replay: share of each batch that is replayed; 0 for none. The buffer holds ``REPLAY_SHARE``
            of all training examples, balanced by class.
        ewc: strength of elastic weight consolidation; 0 for none.
        distillation: weight of the adapter from before the task as a teacher; 0 for none.
        keep: which adapter is tested: the last, the mean of all tasks' (each trained from the
            initial one), or each task's own (the task is known when it is tested).
    """

    name: str
    replay: float = 0.0
    ewc: float = 0.0
    distillation: float = 0.0
    keep: Keep = "last"


METHODS = (
    Method(name="naive"),
    Method(name="replay of 2 %", replay=0.75),
    Method(name="EWC", ewc=1000.0),
    Method(name="distillation (LwF)", distillation=0.5),
    Method(name="averaged adapters", keep="average"),
    Method(name="per-task adapters, task known", keep="per_task"),
)


def handwriting_sequence(seed: int, *, validation: bool = False) -> Sequence:
    """MNIST: 1,500 upright digits for the base; 2,000 for the device, the same ones in each task.

    The test is on 1,000 others, or with ``validation`` on 500 that the test never sees.
    """
    x, y = pictures()
    order = np.random.default_rng(seed).permutation(len(x))
    return _sequence(x[order], y[order], seed, (1500, 2000, 500), 2, validation=validation)


def digits_sequence(seed: int, *, validation: bool = False) -> Sequence:
    """8 x 8 scans: 500 upright digits for the base, 700 for the device, 150 and 447 as above."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    x = (digits.data[order] / 16).astype(np.float32).reshape(-1, 8, 8)
    y = digits.target[order].astype(np.int64)
    return _sequence(x, y, seed, (500, 700, 150), 2, validation=validation)


SEQUENCES = {"handwriting": handwriting_sequence, "digits": digits_sequence}


def _sequence(
    x: Floats,
    y: npt.NDArray[np.int64],
    seed: int,
    sizes: tuple[int, int, int],
    depth: int,
    *,
    validation: bool,
) -> Sequence:
    source, train, held, test = np.split(np.arange(len(x)), np.cumsum(sizes))
    torch.manual_seed(seed)
    model = drawn_for_relu(dense(10, depth, inputs=x[0].size))
    source_x = x[source].reshape(len(source), -1)
    train_base(model, share(source_x, y[source]), epochs=20)
    tested = held if validation else test
    return Sequence(
        model=model,
        calibration_x=source_x[:CALIBRATION_EXAMPLES],
        train=tuple((_turned(x[train], angle), y[train]) for angle in ANGLES),
        test=tuple((_turned(x[tested], angle), y[tested]) for angle in ANGLES),
    )


def _turned(x: Floats, angle: float) -> Floats:
    turned = rotate(x, angle, axes=(1, 2), reshape=False, order=1)
    return np.ascontiguousarray(turned.reshape(len(x), -1), np.float32)


def compile_sequence(sequence: Sequence, rule: str, seed: int, out: Path) -> None:
    """The bundle that a device trains: calibrated adapters, int8 base, SGD or Adam in the graph."""
    compile_bundle(
        sequence.model,
        calibration_x=sequence.calibration_x,
        config=CompileConfig(
            rule=rule,  # type: ignore[arg-type]
            optimizer="adam",
            seed=seed,
            max_batch=64,
            distillation=True,
            privacy=PrivacyConfig(),  # for the graph that gives per-example gradients
        ),
        name="sequence",
        version=1,
        signing_key=None,
        out=out,
    )


def accuracy_matrix(
    bundle: Bundle,
    sequence: Sequence,
    method: Method,
    *,
    learning_rate: float,
    epochs: int,
    seed: int,
) -> npt.NDArray[np.float64]:
    """Trains the tasks in order with one method; R [T, T] as in ``continual_metrics``.

    With replay a step has ``BATCH_SIZE`` fresh examples and the replayed ones beside them, so that
    every method takes the same number of steps over the same fresh examples.

    Args:
        bundle: of ``compile_sequence``.
        sequence: the tasks.
        method: how the device goes on learning.
        learning_rate: peak of each task's schedule.
        epochs: passes over each task.
        seed: of the order of the examples and of the buffer.
    """
    trainer, rng = Trainer(bundle), np.random.default_rng(seed)
    tasks = len(sequence.train)
    buffer = _buffer(bundle, sequence)
    elastic: ElasticWeights | None = None
    kept: list[Arrays] = []
    accuracy_TT = np.zeros((tasks, tasks))
    for task in range(tasks):
        x, y = sequence.train[task]
        if method.keep != "last":
            trainer.load_adapter(bundle.initial_adapter())
        replay = Replay(buffer=buffer, fraction=method.replay) if method.replay else None
        replaying = replay is not None and len(buffer) > 0
        trainer.fit(
            x,
            y,
            epochs=epochs,
            batch_size=round(BATCH_SIZE / (1 - method.replay)) if replaying else BATCH_SIZE,
            learning_rate=learning_rate,
            rng=rng,
            replay=replay,
            elastic=elastic,
            distillation=method.distillation if task else 0.0,
        )
        if method.replay:
            trainer.remember(buffer, x, y, rng, uses=epochs)
        if method.ewc:
            rows = rng.choice(len(x), EWC_EXAMPLES, replace=False)
            fisher = trainer.fisher(x[rows], rng)
            elastic = consolidated(elastic, fisher, trainer.adapter, strength=method.ewc)
        kept.append(trainer.adapter)
        accuracy_TT[task] = _row(trainer, sequence, kept, method)
    return accuracy_TT


def _buffer(bundle: Bundle, sequence: Sequence) -> ReplayBuffer:
    examples = round(REPLAY_SHARE * sum(len(y) for _, y in sequence.train))
    settings = ReplaySettings(quota_bytes=0, storage="uint8")
    quota = quota_bytes(bundle.manifest, settings, examples)
    return ReplayBuffer(bundle.manifest, replace(settings, quota_bytes=quota))


def _row(trainer: Trainer, sequence: Sequence, kept: list[Arrays], method: Method) -> list[float]:
    """Accuracy on every task after the last one trained."""
    row = []
    for task, (x, y) in enumerate(sequence.test):
        if method.keep == "average":
            trainer.load_adapter(
                {name: np.mean([a[name] for a in kept], axis=0) for name in kept[0]}
            )
        elif method.keep == "per_task":
            trainer.load_adapter(kept[min(task, len(kept) - 1)])
        row.append(trainer.evaluate(x, y).metric)
    return row
