"""One run of training: the loop over batches, and what makes it resumable."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rootlet_runtime.batches import AnyArray, Schedule, gather
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.checkpoint import (
    Checkpoint,
    fitting_state,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from rootlet_runtime.engines import Engine
from rootlet_runtime.errors import NonFiniteLossError
from rootlet_runtime.ewc import ElasticWeights
from rootlet_runtime.quality_gate import Verdict
from rootlet_runtime.state import TrainState

FIT_STEM = "fit"


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """Where a ``fit`` is: epoch and step count from 1, loss and metric are the last step's."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: float


Progress = Callable[[FitProgress], bool | None]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a ``fit`` did.

    Attributes:
        steps: steps taken in all, those before a resume included.
        examples: examples seen in all (an example of two epochs counts twice).
        loss: mean over the last epoch, weighted by examples; each step's loss is taken before its
            update.
        metric: the same mean of accuracy or squared error.
        seconds: of this call.
        stopped: whether ``progress`` ended it early.
        resumed_from_step: steps that an earlier, unfinished call had taken; 0 for a fresh start.
        replay_uses: how often each replayed row was used, steps before a resume included; empty
            where nothing was replayed or the ``fit`` was stopped.
        verdict: of the quality gate, where the caller has one (``rootlet.Learner``).
    """

    steps: int
    examples: int
    loss: float
    metric: float
    seconds: float
    stopped: bool
    resumed_from_step: int
    replay_uses: tuple[int, ...] = ()
    verdict: Verdict | None = None


@dataclass(kw_only=True)
class _Position:
    """What a checkpoint notes beside the state: enough to go on with the same bits."""

    seed: int
    step: int = 0
    examples: int = 0
    epoch_examples: int = 0
    loss_sum: float = 0.0
    metric_sum: float = 0.0

    def add(self, loss: float, metric: float, examples: int, *, new_epoch: bool) -> None:
        if new_epoch:
            self.epoch_examples, self.loss_sum, self.metric_sum = 0, 0.0, 0.0
        self.step += 1
        self.examples += examples
        self.epoch_examples += examples
        self.loss_sum += loss * examples
        self.metric_sum += metric * examples


@dataclass(kw_only=True)
class FitRun:
    """The loop; inputs are checked before it is made.

    The last ``replayed`` rows of ``x`` and ``y`` are replayed ones, ``replay_per_batch`` in each
    batch. ``elastic`` pulls the adapter after each step.
    """

    bundle: Bundle
    engine: Engine
    x: AnyArray
    y: AnyArray
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    progress: Progress | None
    checkpoint_dir: Path | None
    checkpoint_every: int
    replayed: int = 0
    replay_per_batch: int = 0
    elastic: ElasticWeights | None = None

    def run(self) -> FitResult:
        """Trains to the end, or until ``progress`` returns ``False``.

        Raises:
            NonFiniteLossError: the state of before the call is back.
        """
        started = time.monotonic()
        before = self.engine.state()
        fingerprint = self._fingerprint(before.digest()) if self.checkpoint_dir else ""
        position = self._resume(fingerprint) or _Position(seed=self.seed)
        resumed_from = position.step
        try:
            stopped = self._train(position, fingerprint)
            if stopped:
                self._save(position, fingerprint)
        except NonFiniteLossError:
            self.engine.load_state(before)
            self._forget()
            raise
        if not stopped:
            self._forget()
        return FitResult(
            steps=position.step,
            examples=position.examples,
            loss=position.loss_sum / position.epoch_examples,
            metric=position.metric_sum / position.epoch_examples,
            seconds=time.monotonic() - started,
            stopped=stopped,
            resumed_from_step=resumed_from,
            replay_uses=()
            if stopped
            else tuple(self._schedule(position.seed).replay_uses().tolist()),
        )

    def _train(self, position: _Position, fingerprint: str) -> bool:
        """Takes the steps that are left; returns whether it was stopped."""
        schedule = self._schedule(position.seed)
        stopped = False
        for rows in schedule.rows(position.step):
            batch = gather(self.x, self.y, rows, self.batch_size)
            loss, metric = self.engine.step(batch, self.learning_rate)
            self._pull(self.learning_rate)
            epoch, index = divmod(position.step, schedule.steps_per_epoch)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} at step {position.step + 1}")
            position.add(loss, metric, batch.examples, new_epoch=index == 0)
            last = position.step == schedule.steps
            if self._wants_stop(epoch, schedule.steps, position.step, loss, metric) and not last:
                stopped = True
                break
            if position.step % self.checkpoint_every == 0 and not last:
                self._save(position, fingerprint)
        self._finite_state(position.step)
        return stopped

    def _schedule(self, seed: int) -> Schedule:
        return Schedule(
            seed=seed,
            examples=len(self.x) - self.replayed,
            batch_size=self.batch_size,
            epochs=self.epochs,
            replayed=self.replayed,
            replay_per_batch=self.replay_per_batch,
        )

    def _pull(self, learning_rate: float) -> None:
        """The proximal step of elastic weight consolidation, outside the graph."""
        if self.elastic is not None:
            state = self.engine.state()
            pulled = self.elastic.pulled(state.adapter, learning_rate)
            self.engine.load_state(replace(state, adapter=pulled))

    def _finite_state(self, step: int) -> TrainState:
        """The engine's state; one that is not finite could be saved, but never restored."""
        state = self.engine.state()
        for what, arrays in (("adapter", state.adapter), ("optimiser", state.optimizer)):
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise self._diverged(f"step {step} left the {what} with values that are not finite")
        return state

    def _wants_stop(self, epoch: int, steps: int, step: int, loss: float, metric: float) -> bool:
        if self.progress is None:
            return False
        report = FitProgress(
            epoch=epoch + 1, epochs=self.epochs, step=step, steps=steps, loss=loss, metric=metric
        )
        return self.progress(report) is False

    def _diverged(self, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{what} of {self.epochs} epochs with learning_rate {self.learning_rate}; the "
            "adapter from before this fit is back. Lower the learning rate, or look for "
            "outliers in x"
        )

    def _fingerprint(self, start: str) -> str:
        """Which ``fit`` this is: bundle, starting state, data and hyperparameters."""
        digest = hashlib.sha256()
        replay = (self.replayed, self.replay_per_batch)
        elastic = None if self.elastic is None else self.elastic.digest()
        settings = (self.epochs, self.batch_size, self.learning_rate.hex(), replay, elastic)
        digest.update(f"{self.bundle.manifest_sha256} {start} {settings}".encode())
        for array in (self.x, self.y):
            digest.update(f"|{array.dtype}{array.shape}|".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def _resume(self, fingerprint: str) -> _Position | None:
        if self.checkpoint_dir is None:
            return None
        found = read_checkpoint(self.checkpoint_dir, FIT_STEM)
        if found is None or found.notes.get("fingerprint") != fingerprint:
            return None
        notes: dict[str, Any] = {**found.notes}
        del notes["fingerprint"]
        self.engine.load_state(fitting_state(found, self.bundle, self.checkpoint_dir))
        return _Position(**notes)

    def _save(self, position: _Position, fingerprint: str) -> None:
        if self.checkpoint_dir is None:
            return
        notes = {**asdict(position), "fingerprint": fingerprint}
        checkpoint = Checkpoint(
            state=self._finite_state(position.step),
            manifest_sha256=self.bundle.manifest_sha256,
            notes=notes,
        )
        write_checkpoint(self.checkpoint_dir, FIT_STEM, checkpoint)

    def _forget(self) -> None:
        if self.checkpoint_dir is not None:
            remove_checkpoint(self.checkpoint_dir, FIT_STEM)
