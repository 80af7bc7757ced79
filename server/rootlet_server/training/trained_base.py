"""``train``: a model, its data and a configuration become a base."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save as encode
from torch import Tensor, nn

from rootlet_runtime.durable import write_atomically
from rootlet_server.training.config import SECOND_ORDER, FullTrainingConfig
from rootlet_server.training.data import Arrays, check_batch
from rootlet_server.training.engine import Engine
from rootlet_server.training.errors import BaseDataError, FullTrainingConfigError
from rootlet_server.training.events import EventFile, TensorBoardLog
from rootlet_server.training.losses import example_losses
from rootlet_server.training.memory import CPU_SIGN, memory_advised
from rootlet_server.training.quantisers import add_quantisers, remove_quantisers
from rootlet_server.training.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from rootlet_runtime.private_report import PrivacySpent
    from rootlet_server.training.data import TrainingData
    from rootlet_server.training.events import Evaluated, OnTraining, TrainingEvent

LOOKED_AT = 64  # examples of a Dataset, before anything runs
CHECKPOINTS, WEIGHTS, BOARD = "checkpoints", "base.safetensors", "tensorboard"


@dataclass(frozen=True, kw_only=True)
class TrainedBase:
    """A base, and how it came about.

    Attributes:
        model: the trained module, on the CPU, in eval mode.
        task: what its outputs mean.
        steps: taken in all, those of earlier calls included.
        resumed_from_step: where this call began.
        loss, metric: on the held-out examples at the end; None without them.
        history: all evaluations of this call.
        reached: whether ``target_metric`` ended it.
        seconds: of this call.
        spent: what private training has spent, for the accountant; None without.
    """

    model: nn.Module
    task: str
    steps: int
    resumed_from_step: int
    loss: float | None
    metric: float | None
    history: tuple[Evaluated, ...]
    reached: bool
    seconds: float
    spent: PrivacySpent | None = None


def train(
    model: nn.Module,
    data: TrainingData,
    config: FullTrainingConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    on_event: OnTraining | None = None,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    tensorboard: bool = False,
) -> TrainedBase:
    """Train a model in full by backpropagation.

    The model is trained in place (under FSDP2, a copy comes back). With ``out`` the run keeps
    checkpoints there, and the same call goes on after the last one: killed at any moment, it ends
    with the very weights that it would have had. Under ``torchrun`` every process makes the same
    call.

    Args:
        model: any module from a batch to logits [N, K], or values.
        data: its examples.
        config: all of it; None takes the defaults.
        out: a folder for checkpoints, events and ``base.safetensors``; None keeps nothing.
        on_event: called with each event, on the first process.
        loss: (x, outputs, y) to the loss of each example, [N]; None takes the task's. First-order
            optimisers only.
        tensorboard: write a TensorBoard log to ``out``.

    Raises:
        FullTrainingConfigError: the configuration is impossible here; nothing ran.
        BaseDataError: the examples do not fit the task.
        NonFiniteError: training left the finite numbers; the last good checkpoint is kept.
        BaseCheckpointError: a checkpoint in ``out`` is damaged or of another run.
        MemoryExhaustedError: memory ran out.
    """
    config = config or FullTrainingConfig()
    start = time.perf_counter()
    folder = None if out is None else Path(out)
    with memory_advised(config):
        _check_data(model, data, config)
    if loss is not None and (config.optimizer.name in SECOND_ORDER or config.privacy is not None):
        raise FullTrainingConfigError(
            f"loss with optimizer.name={config.optimizer.name!r}, privacy={config.privacy}: a loss "
            "of your own goes with first-order optimisers and without privacy."
        )
    if config.privacy is not None:
        from rootlet_server.training.private import train_private  # noqa: PLC0415

        return train_private(model, data, config, on_event=on_event or _nothing)
    with ExitStack() as stack:
        stack.enter_context(_own_randomness(config))
        engine = stack.enter_context(Engine(config.engine))
        stack.enter_context(memory_advised(config))
        logs = _Logs(folder if engine.rank == 0 else None, on_event, tensorboard=tensorboard)
        stack.callback(logs.close)
        if config.quantiser != "off":
            stack.callback(remove_quantisers, model, config)
            add_quantisers(model, config)
        run = Run(
            engine,
            model,
            data,
            config,
            folder=None if folder is None else folder / CHECKPOINTS,
            loss=loss or (lambda _, output, y: example_losses(config.task, output, y)),
            on_event=logs.take,
        )
        run.run()
        trained = remove_quantisers(engine.whole_model().eval(), config)
        if folder is not None and engine.rank == 0:
            save_weights(trained, folder / WEIGHTS)
        engine.barrier()
    last = run.history[-1] if run.history else None
    return TrainedBase(
        model=trained,
        task=config.task,
        steps=run.step,
        resumed_from_step=run.resumed_from,
        loss=None if last is None else last.loss,
        metric=None if last is None else last.metric,
        history=tuple(run.history),
        reached=run.reached,
        seconds=time.perf_counter() - start,
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """The state of a module as safetensors; a crash leaves the old file or the new one."""
    tensors = {
        name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()
    }
    write_atomically(path, encode(tensors), mode=0o644)


def _check_data(model: nn.Module, data: TrainingData, config: FullTrainingConfig) -> None:
    if not isinstance(model, nn.Module):
        raise BaseDataError(f"model is a {type(model).__name__}; pass a torch.nn.Module.")
    for name, source in (("train", data.train), ("held_out", data.held_out)):
        if source is None:
            continue
        if not len(source):
            raise BaseDataError(f"data.{name} has no examples.")
        outputs = None
        for x, y in source.batches([torch.arange(min(len(source), LOOKED_AT))], 0):
            check_batch(config.task, x, y)
            outputs = _outputs(model, x[:2])
            check_batch(config.task, x, y, outputs)
        if isinstance(source, Arrays):
            check_batch(config.task, source.x, source.y, outputs)
    if config.target_metric is not None and data.held_out is None:
        raise BaseDataError("target_metric needs data.held_out to measure it on.")


def _outputs(model: nn.Module, x: Tensor) -> int:
    """K, seen on two examples; nothing of the model changes."""
    training, first = model.training, next(model.parameters(), x)
    try:
        with torch.no_grad():
            output = model.eval()(x.to(first.device))
    except (IndexError, RuntimeError) as error:
        if CPU_SIGN in str(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseDataError(
            f"the model fails on examples of shape {list(x.shape)} and dtype "
            f"{str(x.dtype).removeprefix('torch.')} ({str(error).splitlines()[0]}). Give examples "
            "of the shape that it takes."
        ) from error
    finally:
        model.train(training)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(x):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BaseDataError(
            f"the model makes {found} of {len(x)} examples; it must return [examples, K]."
        )
    return output.shape[1]


@contextmanager
def _own_randomness(config: FullTrainingConfig) -> Iterator[None]:
    """The caller's generators are as they were afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(config.deterministic or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def _nothing(_: TrainingEvent) -> None:
    pass


class _Logs:
    """The event file, the TensorBoard log and the caller."""

    def __init__(
        self, folder: Path | None, on_event: OnTraining | None, *, tensorboard: bool
    ) -> None:
        self._folder, self._on_event = folder, on_event or _nothing
        self._file: EventFile | None = None
        self._board = None
        if tensorboard and folder is not None:
            self._board = TensorBoardLog(folder / BOARD)

    def take(self, event: TrainingEvent) -> None:
        if self._file is None and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            after = event.step if type(event).__name__ == "Resumed" else 0
            self._file = EventFile(self._folder, after=after)
        for log in (self._file, self._board):
            if log is not None:
                log.write(event)
        self._on_event(event)

    def close(self) -> None:
        for log in (self._file, self._board):
            if log is not None:
                log.close()
