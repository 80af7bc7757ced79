"""A device's answers: measure, train, and refuse what the device did not agree to."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rootlet import protocol
from rootlet.compression import UPDATE, Arrays
from rootlet.continual import Continual
from rootlet.energy_account import Allowance
from rootlet.errors import RecordError, RequestRefusedError
from rootlet.fleet.envelope import Answer, FleetRequest
from rootlet.fleet.objects import records_bytes
from rootlet.fleet.records import ArrayRecord
from rootlet.protocol import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from rootlet.refreshed_feedback import RefreshedFeedback
from rootlet.round_work import needed_work, spent_j
from rootlet_runtime.errors import (
    AdapterError,
    DivergedError,
    FeedbackPartError,
    NonFiniteLossError,
    RootletError,
)
from rootlet_runtime.ewc import ElasticWeights
from rootlet_runtime.fit import FitProgress, FitResult
from rootlet_runtime.schedule import ROUND
from rootlet_runtime.trainer import Trainer

log = logging.getLogger(__name__)

Examples = tuple[np.ndarray, np.ndarray]


class DataSource(Protocol):
    """A device's examples, asked for anew in each round."""

    def train(self) -> Examples:
        """Return the examples to train on: x `[N, ...]`, y `[N, ...]`."""

    def holdout(self) -> Examples | None:
        """Return the examples to measure on; None, or no rows, to measure on the training ones."""


@dataclass(frozen=True, kw_only=True)
class RoundLimits:
    """The most that a server may ask for in one round; the batch is bounded by the bundle.

    Attributes:
        epochs: Passes over the examples.
        learning_rate: Step size.
    """

    epochs: int = 20
    learning_rate: float = 10.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.learning_rate > 0:
            raise ValueError(f"{self}: epochs >= 1 and learning_rate > 0 are needed")


DEFAULT_LIMITS = RoundLimits()


class Participant:
    """Answers requests with a trainer and the device's own examples.

    A request that is refused or fails is answered with an error that says why; the device goes on,
    with the adapter that it had before. After a successful `train` the trainer holds the trained
    adapter; `evaluate` leaves it as it was.

    Args:
        trainer: The bundle's trainer.
        data: The device's examples.
        limits: Bounds on what a server may ask for.
        rng: Draws the order of the examples; by default seeded by the operating system.
        checkpoint_dir: Where an interrupted training goes on from; None to start it anew.
        continual: What is replayed and distilled; None for nothing. The teacher is the adapter that
            the trainer has when the request comes: the last accepted one.
        allowance: What a round may spend, and the account that it is charged to.
        feedback: What the trainer learns by and keeps; None for one that lasts as long as the
            participant, and is not told to the server.

    Attributes:
        allowance: What a round may spend, and the account that it is charged to.
        last_fit: What the last training did; None where there was none, or it failed.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: DataSource,
        *,
        limits: RoundLimits = DEFAULT_LIMITS,
        rng: np.random.Generator | None = None,
        checkpoint_dir: Path | None = None,
        allowance: Allowance | None = None,
        continual: Continual | None = None,
        feedback: RefreshedFeedback | None = None,
    ) -> None:
        self.last_fit: FitResult | None = None
        self.allowance = allowance or Allowance()
        self._trainer = trainer
        self._data = data
        self._limits = limits
        self._rng = rng or np.random.default_rng()
        self._checkpoint_dir = checkpoint_dir
        self._continual = continual
        self._feedback = feedback or RefreshedFeedback(trainer)
        classes = trainer.bundle.manifest.task == "classification"
        self._metric = protocol.METRICS[0 if classes else 1]

    def answer(
        self, request: FleetRequest, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Answer | None:
        """Return the answer to a request; None where `should_stop` interrupted the training."""
        before = self._trainer.adapter
        try:
            answer = self._answer(request, should_stop)
        except RecordError as error:
            answer = Answer({}, str(error), protocol.ERROR_MALFORMED)
        except FeedbackPartError as error:
            answer = Answer({}, f"the feedback part is refused: {error}", protocol.ERROR_REFUSED)
        except (RequestRefusedError, AdapterError) as error:
            answer = Answer({}, str(error), protocol.ERROR_REFUSED)
        except Exception as error:  # the app's data source or the engine: the device must live on
            unforeseen = not isinstance(error, RootletError)
            log.warning("%s request failed: %s", request.message_type, error, exc_info=unforeseen)
            answer = Answer({}, _reason(error), protocol.ERROR_FAILED)
        trained = request.message_type == protocol.TRAIN
        if answer is None or answer.error or not trained:
            self._trainer.load_adapter(before)
        return answer

    def _answer(self, request: FleetRequest, should_stop: Callable[[], bool]) -> Answer | None:
        if request.message_type == protocol.TRAIN:
            asked = TrainRequest.from_records(request.records)
            self._check(asked)
            self._check_training(asked)
            if asked.feedback:
                self._feedback.receive(asked.feedback)
            return self._train(asked, request.n_bytes, should_stop)
        if request.message_type == protocol.EVALUATE:
            evaluation = EvaluateRequest.from_records(request.records)
            self._check(evaluation)
            return self._evaluate(evaluation)
        raise RequestRefusedError(
            f"message type {request.message_type!r:.80} is unknown; this device answers "
            f"{protocol.TRAIN!r} and {protocol.EVALUATE!r}"
        )

    def _train(
        self, asked: TrainRequest, bytes_down: int, should_stop: Callable[[], bool]
    ) -> Answer | None:
        erasures = 0 if self._continual is None else self._continual.erasures
        x, y = self._data.train()
        measured_x, measured_y = self._measured(x, y)
        holds_out = measured_x is not x
        self._check_energy(asked, len(x), len(measured_x) if holds_out else 0)
        accepted = self._trainer.adapter
        self._trainer.load_adapter(asked.adapter)
        received = self._trainer.evaluate(measured_x, measured_y)
        allowance = self.allowance
        allowance.begin()

        def watch(progress: FitProgress) -> bool:
            allowance.charge(progress.energy)
            return not should_stop()

        self.last_fit = None
        self.last_fit = result = self._trainer.fit(
            x,
            y,
            epochs=asked.epochs,
            batch_size=asked.batch_size,
            learning_rate=asked.learning_rate,
            rng=self._rng,
            progress=watch,
            checkpoint_dir=self._checkpoint_dir,
            replay=None if self._continual is None else self._continual.replay,
            distillation=0.0 if self._continual is None else self._continual.distillation,
            teacher=accepted,
            schedule=ROUND,
            held_out=(measured_x, measured_y) if holds_out else None,
            energy_limit_j=allowance.limit_j,
            elastic=_proximal(asked),
        )
        allowance.charge(result.energy, final=True)
        if result.ended_by == "energy":
            raise RequestRefusedError(
                f"stopped after {result.steps} steps, for this device spends at most "
                f"{allowance.limit_j:.3g} J on a round: ask for fewer epochs"
            )
        if result.stopped:
            return None
        if self._continual is not None:
            self._continual.learnt(self._trainer, (x, y), asked.epochs, erasures=erasures)
        adapter = self._trainer.adapter
        update = self._update(asked, adapter)
        name = UPDATE if update else "arrays"
        reply = TrainReply(
            metric=self._metric,
            adapter=adapter,
            num_examples=len(x),
            loss=result.loss,
            received=received.metric,
            trained=self._trainer.evaluate(measured_x, measured_y).metric,
            train_s=result.seconds,
            energy_estimated_j=spent_j(self._trainer.bundle.manifest, result, len(measured_x)),
            bytes_down=bytes_down,
            bytes_up=records_bytes({name: ArrayRecord(update or adapter)}),
            feedback_version=self._feedback.version,
            update=update,
        )
        return Answer(reply.to_records())

    def _update(self, asked: TrainRequest, adapter: Arrays) -> dict[str, np.ndarray]:
        """The update as it travels; empty where the adapter does."""
        if asked.compression is None:
            return {}
        change = {name: value - asked.adapter[name] for name, value in adapter.items()}
        return asked.compression.encode(change, self._rng)

    def _evaluate(self, asked: EvaluateRequest) -> Answer:
        x, y = self._measured(*self._data.train())
        self._trainer.load_adapter(asked.adapter)
        result = self._trainer.evaluate(x, y)
        reply = EvaluateReply(
            metric=self._metric,
            num_examples=result.examples,
            loss=result.loss,
            received=result.metric,
        )
        return Answer(reply.to_records())

    def _measured(self, x: np.ndarray, y: np.ndarray) -> Examples:
        """Return the examples to measure on."""
        if len(x) == 0:
            raise RequestRefusedError("this device has no examples yet; at least 1 is needed")
        holdout = self._data.holdout()
        return (x, y) if holdout is None or len(holdout[0]) == 0 else holdout

    def _check_energy(self, asked: TrainRequest, examples: int, held_out: int) -> None:
        """Refuse a round that is known to need more energy than it may spend."""
        limit = self.allowance.limit_j
        if limit is None or self._trainer.measures_energy:
            return
        work = needed_work(
            self._trainer.bundle.manifest,
            asked,
            self._continual,
            examples=examples,
            held_out=held_out,
        )
        if work.estimated_j > limit:
            raise RequestRefusedError(
                f"the round needs {work.estimated_j:.3g} J (estimated) and this device spends at "
                f"most {limit:.3g} J on one: ask for fewer epochs"
            )

    def _check(self, asked: EvaluateRequest) -> None:
        """Refuse a request for another bundle."""
        bundle = self._trainer.bundle
        if asked.manifest_sha256 != bundle.manifest_sha256:
            raise RequestRefusedError(
                f"the request is for bundle {asked.bundle} {asked.bundle_version} "
                f"({asked.manifest_sha256[:12]}…); this device runs {bundle.manifest.name} "
                f"{bundle.manifest.version} ({bundle.manifest_sha256[:12]}…): install the same "
                "bundle on both sides"
            )

    def _check_training(self, asked: TrainRequest) -> None:
        """Refuse a training beyond the device's bounds."""
        bounds = (
            ("epochs", asked.epochs, self._limits.epochs),
            ("learning_rate", asked.learning_rate, self._limits.learning_rate),
            ("batch_size", asked.batch_size, self._trainer.max_batch),
        )
        for name, value, bound in bounds:
            if value > bound:
                raise RequestRefusedError(
                    f"{name} is {value}; this device accepts at most {bound}: ask for less, or "
                    "raise the device's limit"
                )


def _proximal(asked: TrainRequest) -> ElasticWeights | None:
    """FedProx's term: elastic weights that are all alike, around the received adapter."""
    if not asked.proximal_mu:
        return None
    alike = {name: np.ones((), np.float32) for name in asked.adapter}
    return ElasticWeights(fisher=alike, anchor=dict(asked.adapter), strength=asked.proximal_mu)


def _reason(error: Exception) -> str:
    """What the server is told of a failure: other texts may hold paths, labels or values."""
    if isinstance(error, NonFiniteLossError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, DivergedError):  # its text tells accuracies
        return f"{type(error).__name__}: training made the adapter worse; lower the learning rate"
    return f"{type(error).__name__}: this device's own log says more"
