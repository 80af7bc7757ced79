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
from rootlet.controls import Controls
from rootlet.energy_account import Allowance
from rootlet.errors import RecordError, RequestRefusedError
from rootlet.fleet.envelope import Answer, FleetRequest
from rootlet.fleet.objects import records_bytes
from rootlet.fleet.records import ArrayRecord
from rootlet.privacy_terms import (
    PRIVACY,
    PrivacyAccount,
    PrivacyPolicy,
    PrivacyTerms,
    private_reply,
)
from rootlet.private_round import PrivateRounds, of_device, planned_steps
from rootlet.protocol import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from rootlet.refreshed_feedback import RefreshedFeedback
from rootlet.request_checks import check_bounds, check_bundle, check_energy
from rootlet.round_work import spent_j
from rootlet.secagg.messages import QUERY, SECURE, StageMessage
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.update import clipped, flat, unflat
from rootlet_runtime.errors import (
    AdapterError,
    DivergedError,
    FeedbackPartError,
    NonFiniteLossError,
    RootletError,
)
from rootlet_runtime.ewc import ElasticWeights
from rootlet_runtime.fit import FitProgress, FitResult
from rootlet_runtime.private_report import PrivacySpent
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
        secure: Answers the stages of secure aggregation; None where the device is not enrolled.
        account: What private rounds may spend, and have; None for no bound, and no memory.
        controls: Keeps the control variate of SCAFFOLD; None for as long as the participant lasts.

    Attributes:
        allowance: What a round may spend, and the account that it is charged to.
        account: What private rounds may spend, and have.
        last_fit: What the last training did; None where there was none, or it failed.
        last_spent: What the last answer spends of the device's privacy; None for one that spends
            it without a bound, or not at all.
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
        secure: SecureParticipation | None = None,
        account: PrivacyAccount | None = None,
        controls: Controls | None = None,
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
        self._secure = secure
        self._controls = controls or Controls()
        self.account = account or PrivacyAccount(PrivacyPolicy())
        self.last_spent: PrivacySpent | None = None
        self._private = PrivateRounds(data, self.allowance, checkpoint_dir)
        classes = trainer.bundle.manifest.task == "classification"
        self._metric = protocol.METRICS[0 if classes else 1]

    def answer(
        self, request: FleetRequest, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Answer | None:
        """Return the answer to a request; None where `should_stop` interrupted the training."""
        before = self._trainer.adapter
        self.last_spent = None
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
        if request.message_type == QUERY and SECURE in request.records:
            return self._enrolled().answer(StageMessage.request(request.records))
        if request.message_type == protocol.TRAIN:
            stage = self._upload_stage(request)
            terms = PrivacyTerms.of(request.records)
            apart = (SECURE, PRIVACY)
            plain = {name: each for name, each in request.records.items() if name not in apart}
            asked = TrainRequest.from_records(plain)
            check_bundle(self._trainer.bundle, asked)
            check_bounds(
                asked,
                {
                    "epochs": self._limits.epochs,
                    "learning_rate": self._limits.learning_rate,
                    "batch_size": self._trainer.max_batch,
                },
            )
            planned = self._planned(asked, terms, stage)
            if asked.feedback:
                self._feedback.receive(asked.feedback)
            if terms is not None and terms.unit == "example":
                self.last_fit = None
                found = self._private.train(self._trainer, asked, terms, should_stop)
                if found is None:
                    return None
                adapter, planned = found
                answer = Answer(private_reply(adapter))
            else:
                reply = self._train(asked, request.n_bytes, should_stop)
                if reply is None:
                    return None
                adapter, answer = reply.adapter, Answer(reply.to_records())
                if terms is not None:
                    short = clipped(flat(adapter) - flat(asked.adapter), terms.max_norm)
                    answer = Answer(private_reply(unflat(flat(asked.adapter) + short, adapter)))
            self.last_spent = planned
            if stage is None:
                return answer
            return self._enrolled().upload(stage, flat(adapter) - flat(asked.adapter))
        if request.message_type == protocol.EVALUATE:
            self._require_open("its figures")
            evaluation = EvaluateRequest.from_records(request.records)
            check_bundle(self._trainer.bundle, evaluation)
            return self._evaluate(evaluation)
        raise RequestRefusedError(
            f"message type {request.message_type!r:.80} is unknown; this device answers "
            f"{protocol.TRAIN!r}, {protocol.EVALUATE!r} and the stages of secure rounds"
        )

    def _planned(
        self, asked: TrainRequest, terms: PrivacyTerms | None, stage: StageMessage | None
    ) -> PrivacySpent | None:
        """What the round will spend, which the policy allows; None for one without privacy."""
        noise = None if stage is None else self._enrolled().plan(stage).noise
        if terms is None and noise is None:
            return None
        if stage is not None and terms is not None and (terms.unit == "device" or noise):
            raise RequestRefusedError(
                f"the request asks for privacy by {terms.unit} beside the secure round's own: one "
                "account cannot hold both; noise by device belongs in the round's plan"
            )
        if terms is not None and terms.unit == "example":
            spent = planned_steps(asked, terms)
        elif noise is not None:
            multiplier = noise.noise_multiplier(flat(asked.adapter).size)
            spent = of_device(noise.clip_norm, multiplier)
        else:
            spent = of_device(terms.max_norm, terms.noise_multiplier)  # type: ignore[union-attr]
        self.account.require(spent)
        return spent

    def _upload_stage(self, request: FleetRequest) -> StageMessage | None:
        """The secure round that an update is for; None where it travels in clear."""
        if SECURE not in request.records:
            self._require_open("its update")
            return None
        stage = StageMessage.request({SECURE: request.records[SECURE]})
        self._enrolled().plan(stage)  # refused before anything is trained
        return stage

    def _enrolled(self) -> SecureParticipation:
        if self._secure is None:
            raise RequestRefusedError(
                "this device is not enrolled, and takes part in no secure round: run rootlet enrol"
            )
        return self._secure

    def _require_open(self, what: str) -> None:
        if self._secure is not None and self._secure.policy.required:
            raise RequestRefusedError(
                f"this device sends {what} by secure aggregation only: ask by a secure round, or "
                "set required=False in its SecurePolicy"
            )

    def _train(
        self, asked: TrainRequest, bytes_down: int, should_stop: Callable[[], bool]
    ) -> TrainReply | None:
        erasures = 0 if self._continual is None else self._continual.erasures
        x, y = self._data.train()
        measured_x, measured_y = self._measured(x, y)
        holds_out = measured_x is not x
        if not self._trainer.measures_energy:
            check_energy(
                self._trainer.bundle.manifest,
                asked,
                self._continual,
                limit_j=self.allowance.limit_j,
                examples=len(x),
                held_out=len(measured_x) if holds_out else 0,
            )
        manifest = self._trainer.bundle.manifest
        control = self._controls.begin(asked.control, manifest) if asked.control else None
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
            elastic=_proximal(asked) if control is None else control,
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
        return TrainReply(
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
            control={}
            if control is None
            else self._controls.finish(control, dict(asked.adapter), adapter, result),
        )

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
