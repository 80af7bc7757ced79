"""The trainer: one bundle's adapter, trained, evaluated and used on a device."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rootlet_runtime import batches, examples
from rootlet_runtime.batches import AnyArray, Batch, Teacher
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.checkpoint import (
    Checkpoint,
    fitting_state,
    read_checkpoint,
    write_checkpoint,
)
from rootlet_runtime.cipher import PLAIN, Cipher
from rootlet_runtime.engines import largest_step, open_engine
from rootlet_runtime.engines.locked import LockedEngine
from rootlet_runtime.errors import CheckpointError, DataError
from rootlet_runtime.ewc import diagonal_fisher
from rootlet_runtime.feedback_part import FeedbackPart
from rootlet_runtime.fit import FitResult, FitRun, Progress
from rootlet_runtime.guard import GuardConfig
from rootlet_runtime.instructions import InstructionCounter
from rootlet_runtime.meter import Meter
from rootlet_runtime.private_fit import PrivateRun, PrivateTraining
from rootlet_runtime.private_report import PrivacySpent, PrivateFitResult, PrivateProgress
from rootlet_runtime.pull import Pull
from rootlet_runtime.replay import Replay, ReplayBuffer
from rootlet_runtime.schedule import RateSchedule
from rootlet_runtime.spending import Spending
from rootlet_runtime.state import TrainState
from rootlet_runtime.tensors import Arrays, check_arrays, zeros

DEFAULT_BATCH_SIZE = 64
TRAINER_STEM = "trainer"
UNCLIPPED = 1e6  # a bound on gradients that is none
DEFAULT_GUARD = GuardConfig()


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Means over the examples; ``metric`` is accuracy, or mean squared error for regression."""

    loss: float
    metric: float
    examples: int


class Trainer:
    """Trains the adapter of a verified bundle.

    ``predict``, ``evaluate`` and ``adapter`` may be called from other threads while ``fit`` runs:
    they wait for the step in progress at most, and see the adapter as it is then. Call ``fit``,
    ``load_adapter`` and ``restore`` from one thread at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "onnxruntime",
        num_threads: int = 1,
        meter: Meter | None = None,
        cipher: Cipher = PLAIN,
    ) -> None:
        """Opens the engine; its graphs are loaded when they are first used.

        ``meter`` measures the energy of a ``fit``; by default what this device has, if anything.
        What ``save`` and ``checkpoint_dir`` keep passes through ``cipher``.

        Raises:
            MissingExtraError: the engine's library is not installed.
        """
        self.bundle = bundle
        self._meter = meter or Meter()
        self._cipher = cipher
        self.max_batch = largest_step(engine, bundle.manifest)
        self._engine = LockedEngine(open_engine(engine, bundle, num_threads))
        self.load_adapter(bundle.initial_adapter())

    def fit(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        rng: np.random.Generator,
        progress: Progress | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 50,
        replay: Replay | None = None,
        distillation: float = 0.0,
        teacher: Mapping[str, npt.ArrayLike] | None = None,
        elastic: Pull | None = None,
        schedule: RateSchedule | None = None,
        held_out: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        guard: GuardConfig | None = DEFAULT_GUARD,
        energy_limit_j: float | None = None,
    ) -> FitResult:
        """Trains the adapter, going on from its present value and optimiser state.

        The learning rate rises and falls as the schedule says. A guard watches for divergence,
        goes back to the last good adapter and lowers the rate; see ``rootlet_runtime.guard``.
        Whatever is raised, the adapter and the optimiser's state are those of before the call.

        The order of the examples is a function of one number drawn from ``rng``. A batch larger
        than the data is cut to the data's size.

        With ``checkpoint_dir``, a ``fit`` that was killed or stopped is taken up by the next call
        that starts from the same bundle, adapter, ``x``, ``y``, epochs, batch size and learning
        rate: it goes on at the last checkpoint with the stored seed and ends with the same bits as
        one that ran through. A checkpoint of any other ``fit`` is ignored, and replaced by the
        first one written.

        Args:
            x: examples, [N, …] as in ``manifest.x``.
            y: labels [N], or targets [N, K].
            epochs: passes over the data.
            batch_size: examples of one step, at most ``manifest.max_batch``.
            learning_rate: step size.
            rng: where the order comes from.
            progress: called after every step; returning ``False`` stops between two steps.
            checkpoint_dir: where an unfinished ``fit`` is kept.
            checkpoint_every: steps between two checkpoints.
            replay: mixes examples of a buffer into every batch; when the ``fit`` ends, each is
                charged in the buffer with the times that it was used. A stopped ``fit`` charges
                nothing: the call that takes it up and ends it charges all.
            distillation: weight in [0, 1) of the outputs of an earlier adapter, as soft targets
                beside ``y`` (Li & Hoiem 2017, at temperature 1); replayed examples have their
                labels alone. The bundle must take a teacher.
            teacher: that earlier adapter; None for the one from before this call.
            elastic: pulls the adapter towards an earlier one after each step.
            schedule: of the learning rate; None for the bundle's.
            held_out: examples and labels that are not trained on, for the guard to measure.
            guard: None for none; what is not finite is refused even so.
            energy_limit_j: most joules of this ``fit``, the calls that it takes up included;
                training stops before the step that would go beyond it, but not before the first.
                The teacher's outputs and the latents count.

        Raises:
            DataError: the examples or settings cannot be used.
            AdapterError: ``teacher`` does not fit the bundle.
            DivergedError: training made the adapter worse, and never better before.
            CheckpointError: a checkpoint is damaged or cannot be written.
        """
        manifest = self.bundle.manifest
        if replay is not None:
            replay.buffer.check_not_private()
        checked_x, checked_y = examples.check_examples(x, y, manifest)
        size = examples.check_batch_size(batch_size, manifest)
        if checkpoint_every < 1:
            raise DataError(f"checkpoint_every {checkpoint_every}: must be at least 1")
        with self.metered(limit_j=energy_limit_j) as spending:
            taught = self._taught(checked_x, distillation, teacher, spending)
            checked_x = self._latents(checked_x, spending)
            replayed = 0 if replay is None else len(replay.buffer)
            if replay is not None and replayed:
                replayed_x, replayed_y = replay.buffer.examples()
                checked_x = np.concatenate([checked_x, replayed_x])
                checked_y = np.concatenate([checked_y, replayed_y])
                if taught is not None:
                    alone = np.zeros((replayed, manifest.num_outputs), np.float32)
                    taught = (
                        np.concatenate([taught[0], alone]),
                        np.concatenate([taught[1], np.zeros(replayed, np.float32)]),
                    )
            size = min(size, len(checked_x))
            run = FitRun(
                bundle=self.bundle,
                engine=self._engine,
                x=checked_x,
                y=checked_y,
                epochs=examples.check_epochs(epochs),
                batch_size=size,
                learning_rate=examples.check_learning_rate(learning_rate),
                seed=batches.draw_seed(rng),
                progress=progress,
                checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
                checkpoint_every=checkpoint_every,
                cipher=self._cipher,
                replayed=replayed,
                replay_per_batch=replay.rows_per_batch(size) if replay and replayed else 0,
                teacher=taught,
                elastic=elastic,
                schedule=schedule or manifest.training.schedule,
                guard=guard,
                held_out=None if held_out is None else self._measured(*held_out, spending),
                spending=spending,
            )
            result = run.run()
        if replay is not None and result.replay_uses:
            replay.buffer.charge(result.replay_uses)
        return result

    def remember(
        self,
        buffer: ReplayBuffer,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        rng: np.random.Generator,
        *,
        uses: int = 0,
        spent: Iterable[PrivacySpent] = (),
    ) -> None:
        """Offers examples to a replay buffer; see ``ReplayBuffer.add``.

        Args:
            buffer: may keep them.
            x: examples, [N, …] as in ``manifest.x``.
            y: labels [N], or targets [N, K].
            rng: decides which are kept.
            uses: how often they have been trained on without privacy.
            spent: of private fits on them that did not have this buffer as ``replay``.

        Raises:
            DataError: the examples cannot be used; the buffer is as it was.
        """
        checked_x, checked_y = examples.check_examples(x, y, self.bundle.manifest)
        buffer.add(self._latents(checked_x), checked_y, rng, uses=uses)
        for each in spent:
            buffer.charge_private(each)

    def fisher(
        self, x: npt.ArrayLike, rng: np.random.Generator, y: npt.ArrayLike | None = None
    ) -> Arrays:
        """The diagonal Fisher information of the adapter; one run of ``grads`` an example.

        ``F = mean_n g_n^2`` with g_n the rule's gradient of example n's loss. The label is drawn
        from the adapter's own outputs (Kirkpatrick et al. 2017), or is ``y``: the empirical Fisher,
        and the only one for a regression.

        Raises:
            DataError: the examples cannot be used, or the bundle has no grads graph.
        """
        manifest = self.bundle.manifest
        if "grads" not in manifest.graphs:
            raise DataError(
                "the bundle has no grads graph, which Fisher information needs; compile it with "
                "CompileConfig(privacy=PrivacyConfig())"
            )
        if y is None:
            if manifest.task != "classification":
                raise DataError("y: a regression has no labels to draw; give its targets")
            cumulative = np.cumsum(self.predict(x), axis=1, dtype=np.float64)
            drawn = rng.random((len(cumulative), 1)) * cumulative[:, -1:]
            y = (cumulative < drawn).sum(axis=1).astype(np.int64)
        checked_x, checked_y = examples.check_examples(x, y, manifest)
        latents = self._latents(checked_x)
        return diagonal_fisher(
            self._gradient(latents[row : row + 1], checked_y[row : row + 1])
            for row in range(len(latents))
        )

    def fit_private(
        self,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        privacy: PrivateTraining,
        epochs: int,
        learning_rate: float,
        schedule: RateSchedule | None = None,
        batch_size: int | None = None,
        progress: PrivateProgress | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 50,
        replay: ReplayBuffer | None = None,
        energy_limit_j: float | None = None,
    ) -> PrivateFitResult:
        """Trains the adapter with differential privacy; see ``rootlet_runtime.private_fit``.

        It takes ``epochs / privacy.sample_rate`` steps on secret Poisson samples. With
        ``checkpoint_dir`` it can be taken up like :meth:`fit`, with new samples and new noise.

        With ``replay``, the samples are drawn from ``x`` and the buffer's examples as one data
        set, and what is spent is carried on with the buffer: the accountant is then given
        ``ReplayBuffer.spent``. See ``docs/privacy.md``.

        Args:
            x: examples, [N, …] as in ``manifest.x``.
            y: labels [N], or targets [N, K].
            privacy: clipping, noise and sampling.
            epochs: how often each example is used, on average.
            learning_rate: step size.
            schedule: of the learning rate; None for the bundle's.
            batch_size: rows of one run of the graph; a larger sample takes several runs.
            progress: called after every step; returning ``False`` stops between two steps.
            checkpoint_dir: where an unfinished fit is kept.
            checkpoint_every: steps between two checkpoints.
            replay: what is trained on beside ``x``; charged whatever happens.
            energy_limit_j: as for :meth:`fit`.

        Raises:
            DataError: the examples or settings cannot be used, the bundle has no grads graph, or
                the buffer cannot be accounted for.
            NonFiniteLossError: the adapter left the finite numbers.
            CheckpointError: a checkpoint is damaged or cannot be written.
        """
        manifest = self.bundle.manifest
        if "grads" not in manifest.graphs:
            raise DataError(
                "the bundle has no grads graph, which a private fit needs; compile it with "
                "CompileConfig(privacy=PrivacyConfig())"
            )
        checked_x, checked_y = examples.check_examples(x, y, manifest)
        if checkpoint_every < 1:
            raise DataError(f"checkpoint_every {checkpoint_every}: must be at least 1")
        with self.metered(limit_j=energy_limit_j) as spending:
            checked_x = self._latents(checked_x, spending)
            if replay is not None:
                replay.check_private(checked_x, checked_y)
                replayed_x, replayed_y = replay.examples()
                checked_x = np.concatenate([checked_x, replayed_x])
                checked_y = np.concatenate([checked_y, replayed_y])
            run = PrivateRun(
                bundle=self.bundle,
                engine=self._engine,
                x=checked_x,
                y=checked_y,
                privacy=privacy,
                epochs=examples.check_epochs(epochs),
                batch_size=self._batch_size(batch_size, len(checked_x)),
                learning_rate=examples.check_learning_rate(learning_rate),
                schedule=schedule or manifest.training.schedule,
                progress=progress,
                checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
                checkpoint_every=checkpoint_every,
                cipher=self._cipher,
                replay=replay,
                spending=spending,
            )
            return run.run()

    def evaluate(
        self, x: npt.ArrayLike, y: npt.ArrayLike, batch_size: int | None = None
    ) -> EvaluateResult:
        """Loss and metric of the present adapter.

        Raises:
            DataError: the examples cannot be used.
        """
        checked_x, checked_y = examples.check_examples(x, y, self.bundle.manifest)
        size = self._batch_size(batch_size, len(checked_x))
        sums = np.zeros(3)
        for rows in batches.in_order(len(checked_x), size):
            batch = batches.gather(checked_x, checked_y, rows, size)
            sums += self._engine.evaluate(replace(batch, x=self._encoded(batch.x)))
        loss, metric, weight = (float(total) for total in sums)
        return EvaluateResult(loss=loss / weight, metric=metric / weight, examples=len(checked_x))

    def predict(self, x: npt.ArrayLike, batch_size: int | None = None) -> npt.NDArray[np.float32]:
        """Outputs [N, K]: class probabilities, or regression values.

        Raises:
            DataError: the examples cannot be used.
        """
        checked = examples.check_x(x, self.bundle.manifest)
        size = self._batch_size(batch_size, len(checked))
        outputs = np.empty((len(checked), self.bundle.manifest.num_outputs), np.float32)
        for rows in batches.in_order(len(checked), size):
            padded = checked[batches.pad_rows(rows, size)]
            outputs[rows] = self._engine.predict(padded)[: len(rows)]
        return outputs

    @contextmanager
    def metered(self, *, limit_j: float | None = None) -> Iterator[Spending]:
        """What is done inside ``with`` is measured, where this device has a meter.

        Whoever predicts or evaluates inside says so by ``Spending.evaluated``, the basis of an
        estimate.
        """
        with self._meter, InstructionCounter() as counter:
            cost = self.bundle.manifest.cost
            yield Spending(self._meter, cost, limit_j=limit_j, counter=counter)

    @property
    def measures_energy(self) -> bool:
        """Whether a ``fit`` is measured here, and not estimated."""
        with self._meter as meter:
            return meter.source is not None

    @property
    def adapter(self) -> Arrays:
        """The present adapter, as copies, by name."""
        return self._engine.state().adapter

    def load_adapter(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Replaces the adapter and starts the optimiser anew.

        Raises:
            AdapterError: it does not fit the bundle; the present adapter is kept.
        """
        self._engine.load_state(self._new(arrays))

    def load_feedback(self, part: FeedbackPart) -> None:
        """Learns by a refreshed feedback from the next step on; see ``feedback_part.open_part``.

        Raises:
            FeedbackPartError: the engine cannot exchange it.
        """
        self._engine.load_feedback(part.overlay)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the adapter and optimiser state; a crash leaves the old checkpoint or the new one.

        Raises:
            CheckpointError: the disk refused; an older checkpoint is as it was.
        """
        checkpoint = Checkpoint(
            state=self._engine.state(), manifest_sha256=self.bundle.manifest_sha256, notes={}
        )
        write_checkpoint(Path(folder), TRAINER_STEM, checkpoint, self._cipher)

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Takes up what :meth:`save` wrote with the same bundle.

        Raises:
            CheckpointError: absent, damaged, or of another bundle; the present state is kept.
        """
        checkpoint = read_checkpoint(Path(folder), TRAINER_STEM, self._cipher)
        if checkpoint is None:
            raise CheckpointError(f"{folder}: holds no saved trainer; Trainer.save writes one")
        self._engine.load_state(
            fitting_state(checkpoint, checkpoint.state, self.bundle, Path(folder))
        )

    def release(self) -> None:
        """Frees the graphs' memory; the adapter stays, and the next call loads them again."""
        self._engine.release()

    def _new(self, arrays: Mapping[str, npt.ArrayLike]) -> TrainState:
        """An adapter with the optimiser at its start."""
        manifest = self.bundle.manifest
        adapter = check_arrays(arrays, manifest.adapter)
        return TrainState(adapter=adapter, optimizer=zeros(manifest.optimizer_state))

    def _encoded(self, x: AnyArray) -> AnyArray:
        return x if self.bundle.manifest.latent is None else self._engine.encode(x)

    def _latents(self, x: AnyArray, spending: Spending | None = None) -> AnyArray:
        """What the train graph takes for these examples; each is computed once."""
        if self.bundle.manifest.latent is None:
            return x
        size = self._batch_size(None, len(x))
        parts = [
            self._encoded(x[batches.pad_rows(rows, size)])[: len(rows)]
            for rows in batches.in_order(len(x), size)
        ]
        if spending is not None:
            spending.evaluated(len(x), len(parts))
        return np.concatenate(parts)

    def _measured(
        self, x: npt.ArrayLike, y: npt.ArrayLike, spending: Spending
    ) -> tuple[AnyArray, AnyArray]:
        checked_x, checked_y = examples.check_examples(x, y, self.bundle.manifest)
        return self._latents(checked_x, spending), checked_y

    def _taught(
        self,
        x: AnyArray,
        distillation: float,
        teacher: Mapping[str, npt.ArrayLike] | None,
        spending: Spending,
    ) -> Teacher | None:
        """The teacher's outputs; zeros of weight 0 where nothing is distilled."""
        manifest = self.bundle.manifest
        if not 0 <= distillation < 1:
            raise DataError(f"distillation {distillation}: must be at least 0 and below 1")
        if not manifest.distils:
            if distillation:
                raise DataError(
                    "distillation: the bundle's train graph takes no teacher; compile it with "
                    "CompileConfig(distillation=True)"
                )
            return None
        weight = np.full(len(x), distillation, np.float32)
        if distillation:
            earlier = None if teacher is None else self._new(teacher)
            with nullcontext() if earlier is None else self._engine.borrowed(earlier):
                outputs = self.predict(x)
            spending.evaluated(len(x), math.ceil(len(x) / self._batch_size(None, len(x))))
            return outputs, weight
        return np.zeros((len(x), manifest.num_outputs), np.float32), weight

    def _gradient(self, x: AnyArray, y: AnyArray) -> Arrays:
        batch = Batch(x, y, np.ones(1, np.float32), 1)
        found = self._engine.gradients(batch, UNCLIPPED)
        return {spec.name: found[f"grads/{spec.name}"] for spec in self.bundle.manifest.adapter}

    def _batch_size(self, asked: int | None, available: int) -> int:
        limit = self.bundle.manifest.max_batch
        size = min(DEFAULT_BATCH_SIZE, limit) if asked is None else asked
        return min(examples.check_batch_size(size, self.bundle.manifest), available)
