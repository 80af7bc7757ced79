"""One adapter on a device: trained in the background, saved when finished, used by the app."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rootlet.continual import Continual
from rootlet.controls import Controls
from rootlet.drift import ConfidenceDrift
from rootlet.elastic import Elastic
from rootlet.energy_account import Allowance
from rootlet.participant import DataSource, Examples, Participant, RoundLimits
from rootlet.privacy_terms import PrivacyAccount
from rootlet.refreshed_feedback import RefreshedFeedback
from rootlet.secagg.participation import SecureParticipation
from rootlet.vault import Vault, cipher_of
from rootlet_runtime.adapter_bank import AdapterBank
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import CheckpointError
from rootlet_runtime.fit import FitProgress, FitResult, Progress
from rootlet_runtime.manifest import TrainingDefaults
from rootlet_runtime.quality_gate import Verdict
from rootlet_runtime.trainer import Trainer

CHECKPOINTS_PER_FIT = 10
MIN_STEPS_PER_CHECKPOINT = 50

_log = logging.getLogger(__name__)


class Learner:
    """A trainer, and beside it a predictor that holds the last finished adapter.

    Whoever changes the trainer holds ``busy``. ``predict`` never takes it: it waits for another
    prediction or for the exchange of the adapter at most, and never sees a half-trained one.

    Args:
        bundle: What to train.
        folder: Where the finished adapter and an unfinished training are kept.
        num_threads: Processor threads of one training.
        continual: What it replays, and the gate that an adapter must pass.
        engine: What runs the graphs.
        vault: Seals what is kept in the folder; None keeps it as it is.

    Attributes:
        tasks: Adapters that are kept by name.
        drift: Watches the predictions.
        verdict: The gate's last; None where there was nothing to judge, or nothing to judge by.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        num_threads: int,
        continual: Continual,
        *,
        engine: str = "onnxruntime",
        vault: Vault | None = None,
    ) -> None:
        self.verdict: Verdict | None = None
        self._continual = continual
        cipher, tasks, control, elastic = (
            cipher_of(vault, "learnt", folder.name + place)
            for place in ("", "/tasks", "/control", "/elastic")
        )
        self.trainer = Trainer(bundle, engine=engine, num_threads=num_threads, cipher=cipher)
        self.tasks = AdapterBank(ArrayFiles(folder / "tasks", tasks), bundle.manifest.adapter)
        self.drift = ConfidenceDrift()
        self._controls = Controls(ArrayFiles(folder / "control", control))
        self._elastic = Elastic(
            continual.ewc, self.trainer, ArrayFiles(folder / "elastic", elastic)
        )
        self.busy = threading.Lock()
        self._folder = folder
        self._predictor = Trainer(bundle, engine=engine)
        self._exchange = threading.Lock()
        self._restore_or_begin()
        self._feedback = RefreshedFeedback(self.trainer, folder / "feedback.part")

    @property
    def feedback_version(self) -> int:
        """Version of the refreshed feedback in use; 0 for the bundle's own."""
        return self._feedback.version

    def predict(self, x: npt.ArrayLike, task: str | None = None) -> npt.NDArray[np.float32]:
        """Outputs ``[N, K]`` of the last finished adapter, for inputs ``[N, ...]``.

        Args:
            x: The inputs.
            task: Takes the adapter that is kept under this name instead.

        Raises:
            AdapterError: The task has none.
        """
        adapter = None if task is None else self.tasks.adapter(task)
        with self._exchange:
            if adapter is None:
                return self._predictor.predict(x)
            finished = self._predictor.adapter
            self._predictor.load_adapter(adapter)
            try:
                return self._predictor.predict(x)
            finally:
                self._predictor.load_adapter(finished)

    def keep_task(self, task: str) -> None:
        """Keeps the last finished adapter under a name."""
        with self._exchange:
            finished = self._predictor.adapter
        self.tasks.keep(task, finished)

    def use_task(self, task: str) -> None:
        """Makes a kept adapter the last finished one; waits for a training to end."""
        adapter = self.tasks.adapter(task)
        with self.busy:
            self.trainer.load_adapter(adapter)
            self.trainer.save(self._folder)
            self._publish()

    def fit(
        self,
        examples: Examples,
        settings: TrainingDefaults,
        *,
        may_go_on: Callable[[], bool],
        progress: Progress | None = None,
        held_out: Examples | None = None,
        allowance: Allowance | None = None,
    ) -> FitResult:
        """Trains on from the finished adapter; asks ``may_go_on`` between two steps.

        If it is stopped or fails, the adapter is the one from before, and the steps taken are kept
        in the folder: a later call with the same arguments goes on from there. The guard measures
        ``held_out``; what is spent is charged to the ``allowance``. If the gate refuses the trained
        adapter, the one from before is back, and the result's ``verdict`` says why.

        Raises:
            TrainingError: The loss left the finite numbers.
            DataError: The examples cannot be used.
        """
        allowance = allowance or Allowance()
        allowance.begin()

        def watch(report: FitProgress) -> bool:
            allowance.charge(report.energy)
            wanted = progress is None or progress(report) is not False
            return wanted and may_go_on()

        x, y = examples
        erasures = self._continual.erasures
        steps = settings.epochs * -(-len(x) // settings.batch_size)
        with self.busy:
            try:
                result = self.trainer.fit(
                    x,
                    y,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    learning_rate=settings.learning_rate,
                    rng=np.random.default_rng(),
                    progress=watch,
                    schedule=settings.schedule,
                    held_out=held_out,
                    energy_limit_j=allowance.limit_j,
                    checkpoint_dir=self._folder,
                    checkpoint_every=max(MIN_STEPS_PER_CHECKPOINT, steps // CHECKPOINTS_PER_FIT),
                    replay=self._continual.replay,
                    distillation=self._continual.distillation,
                    elastic=self._elastic.weights,
                )
            except BaseException:
                self.roll_back()
                raise
            allowance.charge(result.energy, final=True)
            if result.stopped:
                self.roll_back()
                return result
            self._continual.learnt(self.trainer, examples, settings.epochs, erasures=erasures)
            verdict = self.finish(allowance)
            if verdict is None or verdict.accepted:
                self._elastic.learnt(x, y)
            return replace(result, verdict=verdict)

    def participant(
        self,
        data: DataSource,
        limits: RoundLimits,
        allowance: Allowance | None = None,
        rng: np.random.Generator | None = None,
        *,
        secure: SecureParticipation | None = None,
        account: PrivacyAccount | None = None,
    ) -> Participant:
        """One that answers a server's requests with this trainer; its caller holds ``busy``."""
        return Participant(
            self.trainer,
            data,
            limits=limits,
            rng=rng,
            checkpoint_dir=self._folder / "round",
            allowance=allowance,
            continual=self._continual,
            feedback=self._feedback,
            secure=secure,
            account=account,
            controls=self._controls,
        )

    def finish(self, allowance: Allowance | None = None) -> Verdict | None:
        """Saves the trainer's adapter and lets ``predict`` use it; the caller holds ``busy``.

        If the gate refuses it, the trainer gets the last finished adapter again.

        Args:
            allowance: Charged with what the gate's predictions took.

        Returns:
            What the gate said; None where it had nothing to judge by.
        """
        with self.trainer.metered() as spending:
            predict = self.trainer.predict
            self.verdict = self._continual.judge(self.predict, predict, spending)
            if allowance is not None and self.verdict is not None:
                allowance.add(spending.energy(final=True))
        if self.verdict is not None and not self.verdict.accepted:
            _log.warning("an update was refused and rolled back: %s", self.verdict.reason)
            self.roll_back()
        else:
            self.trainer.save(self._folder)
            self._publish()
        return self.verdict

    def roll_back(self) -> None:
        """Gives the trainer its last finished adapter again; the caller holds ``busy``."""
        self.trainer.restore(self._folder)

    def refresh_feedback(self, part: bytes) -> int:
        """Learns by a refreshed feedback from the next training on, and after a restart too.

        Waits for a training under way.

        Returns:
            Its version.

        Raises:
            FeedbackPartError: It is not the publisher's for this bundle, or not newer.
        """
        with self.busy:
            return self._feedback.refresh(part)

    def release(self) -> None:
        """Frees the memory of the training graphs until they are needed, unless they are now."""
        if self.busy.acquire(blocking=False):
            try:
                self.trainer.release()
            finally:
                self.busy.release()

    def _publish(self) -> None:
        adapter = self.trainer.adapter
        with self._exchange:
            self._predictor.load_adapter(adapter)
        self.drift.begin()

    def _restore_or_begin(self) -> None:
        try:
            self.trainer.restore(self._folder)
        except CheckpointError as error:
            if self._folder.exists():
                _log.warning("training starts anew from the bundle's adapter: %s", error)
            self.trainer.save(self._folder)
        self._publish()
