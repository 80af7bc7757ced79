"""One run of training: the loop over batches, and what makes it resumable."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rootlet_runtime.batches import AnyArray, Schedule, Teacher, gather
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.cipher import PLAIN, Cipher
from rootlet_runtime.energy import Energy
from rootlet_runtime.engines import Engine
from rootlet_runtime.errors import DivergedError
from rootlet_runtime.fit_checkpoint import FitCheckpoint, fingerprint
from rootlet_runtime.guard import Guard, GuardConfig, chance_of
from rootlet_runtime.pull import Pull
from rootlet_runtime.quality_gate import Verdict
from rootlet_runtime.schedule import RateSchedule
from rootlet_runtime.spending import Spending
from rootlet_runtime.state import TrainState
from rootlet_runtime.watch import HeldOut, Watch

EndedBy = Literal["steps", "progress", "energy", "guard"]


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """Where a ``fit`` is: epoch and step count from 1, loss and metric are the last step's.

    ``learning_rate`` is that step's; ``rolled_back`` and ``reason`` are the guard's so far;
    ``energy`` is this call's.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    metric: float
    learning_rate: float
    rolled_back: int
    reason: str
    energy: Energy


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
        energy: of this call, measured or estimated.
        ended_by: ``steps`` where all were taken; ``progress`` or ``energy`` where it was stopped
            between two steps and can be taken up; ``guard`` where it kept diverging, and ended
            with the last good adapter.
        rolled_back: how often the guard went back to the last good adapter.
        reason: of the last time; empty where there was none.
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
    energy: Energy
    ended_by: EndedBy
    resumed_from_step: int
    rolled_back: int = 0
    reason: str = ""
    replay_uses: tuple[int, ...] = ()
    verdict: Verdict | None = None

    @property
    def stopped(self) -> bool:
        """Whether it is unfinished: the same call, made again, goes on."""
        return self.ended_by in {"progress", "energy"}


@dataclass(kw_only=True)
class _Position:
    """What a checkpoint notes beside the state: enough to go on with the same bits."""

    seed: int
    step: int = 0
    examples: int = 0
    epoch: int = 0
    epoch_examples: int = 0
    loss_sum: float = 0.0
    metric_sum: float = 0.0

    def add(self, loss: float, metric: float, examples: int, epoch: int) -> None:
        """Counts a step; the sums are those of the last epoch with a finite loss."""
        self.step += 1
        self.examples += examples
        if not math.isfinite(loss):
            return
        if epoch != self.epoch:
            self.epoch, self.epoch_examples, self.loss_sum, self.metric_sum = epoch, 0, 0.0, 0.0
        self.epoch_examples += examples
        self.loss_sum += loss * examples
        self.metric_sum += metric * examples


@dataclass(kw_only=True)
class FitRun:
    """The loop; inputs are checked before it is made.

    The last ``replayed`` rows of ``x`` and ``y`` are replayed ones, ``replay_per_batch`` in each
    batch. ``teacher`` is there where the train graph takes one. ``elastic`` pulls the adapter
    after each step. ``guard`` is None for none, which still refuses what is not finite.
    ``spending`` has counted what was done to make ready, and is entered.
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
    cipher: Cipher = PLAIN
    replayed: int = 0
    replay_per_batch: int = 0
    teacher: Teacher | None = None
    elastic: Pull | None = None
    schedule: RateSchedule
    guard: GuardConfig | None
    held_out: HeldOut | None
    spending: Spending

    def run(self) -> FitResult:
        """Trains to the end, or until it is stopped.

        Whatever is raised, the state of before the call is back.

        Raises:
            DivergedError: no state since the start was good.
            CheckpointError: a checkpoint is damaged or cannot be written.
        """
        started = time.monotonic()
        before = self.engine.state()
        checkpoint = FitCheckpoint(
            folder=self.checkpoint_dir,
            bundle=self.bundle,
            fingerprint=self._fingerprint(before.digest()) if self.checkpoint_dir else "",
            cipher=self.cipher,
        )
        self.spending.begin()
        watch = self._watch(before, self.spending)
        try:
            position = self._resume(checkpoint, watch)
            resumed_from = position.step
            ended_by = self._train(position, watch, checkpoint)
            if ended_by in {"progress", "energy"}:
                self._save(position, watch, checkpoint)
        except BaseException as error:
            self.engine.load_state(before)
            if isinstance(error, DivergedError):
                checkpoint.remove()
            raise
        if ended_by in {"steps", "guard"}:
            checkpoint.remove()
        energy = self.spending.energy(final=True)
        done = ended_by in {"steps", "guard"}
        return FitResult(
            steps=position.step,
            examples=position.examples,
            loss=position.loss_sum / position.epoch_examples,
            metric=position.metric_sum / position.epoch_examples,
            seconds=time.monotonic() - started,
            energy=energy,
            ended_by=ended_by,
            resumed_from_step=resumed_from,
            rolled_back=watch.rollbacks,
            reason=watch.reason,
            replay_uses=tuple(self._rows(position.seed).replay_uses().tolist()) if done else (),
        )

    def _train(self, position: _Position, watch: Watch, checkpoint: FitCheckpoint) -> EndedBy:
        """Takes the steps that are left."""
        rows = self._rows(position.seed)
        for chosen in rows.rows(position.step):
            if position.step and not watch.spending.room():
                return "energy"
            rate = self.learning_rate * self.schedule.factor(position.step, rows.steps)
            rate *= watch.factor
            batch = gather(self.x, self.y, chosen, self.batch_size, self.teacher)
            loss, metric = self.engine.step(batch, rate)
            self._pull(rate)
            watch.spending.trained(batch.examples)
            position.add(loss, metric, batch.examples, position.step // rows.steps_per_epoch)
            last = position.step == rows.steps
            if not watch.after(loss, metric, batch.examples, rate, last=last):
                return "guard"
            if self._wants_stop(position, watch, (loss, metric, rate), rows) and not last:
                return "progress" if watch.settle(rate) else "guard"
            if position.step % self.checkpoint_every == 0 and not last:
                if not watch.settle(rate):
                    return "guard"
                self._save(position, watch, checkpoint)
        return "steps"

    def _rows(self, seed: int) -> Schedule:
        return Schedule(
            seed=seed,
            examples=len(self.x) - self.replayed,
            batch_size=self.batch_size,
            epochs=self.epochs,
            replayed=self.replayed,
            replay_per_batch=self.replay_per_batch,
        )

    def _watch(self, before: TrainState, spending: Spending) -> Watch:
        classifies = self.bundle.manifest.task == "classification"
        return Watch(
            engine=self.engine,
            config=self.guard,
            guard=Guard(classifies=classifies, chance=chance_of(self.y, classifies=classifies)),
            batch_size=self.batch_size,
            held_out=self.held_out,
            spending=spending,
            good=before,
        )

    def _pull(self, learning_rate: float) -> None:
        """The proximal step of elastic weight consolidation, outside the graph."""
        if self.elastic is not None:
            state = self.engine.state()
            pulled = self.elastic.pulled(state.adapter, learning_rate)
            self.engine.load_state(replace(state, adapter=pulled))

    def _wants_stop(
        self, position: _Position, watch: Watch, step: tuple[float, float, float], rows: Schedule
    ) -> bool:
        if self.progress is None:
            return False
        loss, metric, rate = step
        report = FitProgress(
            epoch=1 + (position.step - 1) // rows.steps_per_epoch,
            epochs=self.epochs,
            step=position.step,
            steps=rows.steps,
            loss=loss,
            metric=metric,
            learning_rate=rate,
            rolled_back=watch.rollbacks,
            reason=watch.reason,
            energy=watch.spending.energy(),
        )
        return self.progress(report) is False

    def _fingerprint(self, start: str) -> str:
        replay = (self.replayed, self.replay_per_batch)
        elastic = None if self.elastic is None else self.elastic.digest()
        rate = (self.learning_rate.hex(), self.schedule, self.guard)
        settings = (self.bundle.manifest_sha256, start, self.epochs, self.batch_size)
        arrays = (self.x, self.y, *(self.held_out or ()), *(self.teacher or ()))
        return fingerprint((*settings, rate, replay, elastic), arrays)

    def _resume(self, checkpoint: FitCheckpoint, watch: Watch) -> _Position:
        found = checkpoint.read()
        if found is None or found.good is None:
            watch.begin()
            return _Position(seed=self.seed)
        self.engine.load_state(found.state)
        watch.resume(found.notes["watch"], found.good)
        notes: dict[str, Any] = {**found.notes["position"]}
        position = _Position(**notes)
        watch.spending.resume(found.notes["energy_j"], position.step)
        return position

    def _save(self, position: _Position, watch: Watch, checkpoint: FitCheckpoint) -> None:
        notes = {
            "position": asdict(position),
            "watch": watch.to_notes(),
            "energy_j": watch.spending.total_j,
        }
        checkpoint.write(self.engine.state(), watch.good, notes)
