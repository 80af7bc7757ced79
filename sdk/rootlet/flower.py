"""The same participant behind a stock Flower `ClientApp`, for those who run SuperNodes.

The only module of the SDK that imports flwr: `pip install "rootlet[server]"`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rootlet import protocol
from rootlet.continual import Continual, ContinualConfig
from rootlet.energy import EnergyBudget
from rootlet.energy_account import Allowance, EnergyAccount
from rootlet.errors import ConfigError
from rootlet.fleet import records as fleet
from rootlet.fleet.envelope import Answer, FleetRequest
from rootlet.fleet.objects import records_bytes
from rootlet.learner import Learner
from rootlet.participant import DEFAULT_LIMITS, DataSource, Participant, RoundLimits
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.policy import SecurePolicy
from rootlet.state import StateDirectory
from rootlet.vault import EXAMPLES, LEARNT
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.errors import MissingExtraError
from rootlet_runtime.trainer import Trainer

try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.clientapp import ClientApp
except ImportError as error:
    raise MissingExtraError(
        f"rootlet.flower needs flwr, which cannot be imported ({error}); run: "
        'pip install "rootlet[server]"'
    ) from error


NO_BUDGET = EnergyBudget()
DEFAULT_SECURE = SecurePolicy()
_ROUND = "rootlet.secagg."


def client_app(
    bundle: Bundle,
    data: DataSource | Callable[[Context], DataSource],
    *,
    limits: RoundLimits = DEFAULT_LIMITS,
    num_threads: int = 1,
    engine: str = "onnxruntime",
    rng: np.random.Generator | None = None,
    checkpoint_dir: Path | None = None,
    state_dir: Path | Callable[[Context], Path] | None = None,
    continual: ContinualConfig | None = None,
    energy: EnergyBudget = NO_BUDGET,
    enrolment: Path | Callable[[Context], Path | None] | None = None,
    secure: SecurePolicy = DEFAULT_SECURE,
) -> ClientApp:
    """Return a ClientApp that answers as a rootlet device does.

    A ClientApp remembers nothing between two messages. With `state_dir` it has what a device has:
    the adapter that its gate accepted last, the replay buffer, and the day's energy.

    Args:
        bundle: The verified bundle.
        data: The examples, or a function from Flower's Context (which has the node's
            configuration, such as `partition-id`) to them.
        limits: Bounds on what a server may ask for.
        num_threads: Threads of the engine.
        engine: What runs the graphs.
        rng: Draws the order of the examples.
        checkpoint_dir: Where an interrupted training goes on from; within `state_dir` where there
            is one.
        state_dir: Where the node remembers, or a function from the Context to it; one message at a
            time.
        continual: How it goes on learning; needs `state_dir`.
        energy: The most that training may spend; a day's budget needs `state_dir`.
        enrolment: The node's enrolment folder (`rootlet.secagg.enrolment`), or a function from the
            Context to it; None for no part in secure rounds. Between the stages of a round its
            secrets lie in the Context's state, in the SuperNode's memory.
        secure: What an enrolled node insists on.

    Raises:
        ConfigError: What must be remembered has no place, or a device-only option is asked for.
    """
    if state_dir is None and (continual is not None or energy.joules_per_day is not None):
        raise ConfigError(
            "continual and joules_per_day must be remembered from message to message: give "
            "client_app a state_dir"
        )
    if continual is not None and (continual.ewc or continual.drift):
        raise ConfigError(
            "ewc holds local trainings and drift watches predictions, and a ClientApp has neither: "
            "leave them out, or embed a DeviceClient"
        )
    if continual is not None:
        continual.check(bundle.manifest)
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        source = data(context) if callable(data) else data
        request = _request(message)
        folder = enrolment(context) if callable(enrolment) else enrolment
        with _secure_rounds(bundle, folder, secure, context) as rounds:
            return respond(message, context, source, request, rounds)

    def respond(
        message: Message,
        context: Context,
        source: DataSource,
        request: FleetRequest,
        rounds: SecureParticipation | None,
    ) -> Message:
        if state_dir is None:
            participant = Participant(
                Trainer(bundle, engine=engine, num_threads=num_threads),
                source,
                limits=limits,
                rng=rng,
                checkpoint_dir=checkpoint_dir,
                allowance=Allowance(limit_j=energy.joules_per_round),
                secure=rounds,
            )
            return _reply(message, participant.answer(request))
        folder = state_dir(context) if callable(state_dir) else state_dir
        with StateDirectory(folder) as state:
            state.accept(bundle.manifest)
            vault = state.vault("file")
            kept = Continual(
                continual or ContinualConfig(),
                bundle.manifest,
                state.replay,
                source.holdout,
                vault.cipher(EXAMPLES),
            )
            adapter = state.adapter(bundle.manifest_sha256)
            learner = Learner(
                bundle, adapter, num_threads, kept, engine=engine, cipher=vault.cipher(LEARNT)
            )
            state.remove_other_adapters(bundle.manifest_sha256)
            answered = _answered(learner, source, limits, energy, state, request, rng, rounds)
            return _reply(message, answered)

    app.train()(answer)
    app.evaluate()(answer)
    app.query()(answer)
    return app


@contextmanager
def _secure_rounds(
    bundle: Bundle, folder: Path | None, policy: SecurePolicy, context: Context
) -> Iterator[SecureParticipation | None]:
    """The node's part in secure rounds, taken up from the Context and put back."""
    rounds = None if folder is None else SecureParticipation.open(folder, policy, bundle)
    if rounds is None:
        yield None
        return
    kept = [name for name in context.state.config_records if name.startswith(_ROUND)]
    rounds.resume({name.removeprefix(_ROUND): context.state.config_records[name] for name in kept})
    yield rounds
    for name in kept:
        del context.state[name]
    for name, record in rounds.to_records().items():
        context.state[_ROUND + name] = ConfigRecord(dict(record))


def _answered(  # noqa: PLR0917 (a message's circumstances)
    learner: Learner,
    source: DataSource,
    limits: RoundLimits,
    energy: EnergyBudget,
    state: StateDirectory,
    request: FleetRequest,
    rng: np.random.Generator | None,
    rounds: SecureParticipation | None,
) -> Answer | None:
    """The answer of a node that remembers; its finished adapter is the new one or the old."""
    account = EnergyAccount(state)
    allowance = Allowance(limit_j=energy.joules_per_round, account=account)
    participant = learner.participant(source, limits, allowance, rng, secure=rounds)
    trains = request.message_type == protocol.TRAIN

    def used_up() -> bool:
        most = energy.joules_per_day
        return trains and most is not None and account.today().joules >= most

    with learner.busy:
        answer = None if used_up() else participant.answer(request, should_stop=used_up)
        if trains and answer is not None and not answer.error:
            learner.finish(allowance)
        else:
            learner.roll_back()
    account.flush()
    return answer


def _request(message: Message) -> FleetRequest:
    records = from_record_dict(message.content)
    return FleetRequest(
        run_id=message.metadata.run_id,
        group_id=message.metadata.group_id,
        message_type=message.metadata.message_type,
        records=records,
        n_bytes=records_bytes(records),
    )


def _reply(message: Message, answer: Answer | None) -> Message:
    """Only the day's budget stops a training here."""
    if answer is None:
        answer = Answer({}, "the day's energy is used up: ask tomorrow", protocol.ERROR_REFUSED)
    if answer.error:
        return Message(Error(answer.code, answer.error), reply_to=message)
    return Message(to_record_dict(answer.records), reply_to=message)


def from_record_dict(content: RecordDict) -> fleet.Records:
    """Return Flower's records as rootlet's."""
    records: fleet.Records = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            records[name] = fleet.ArrayRecord({key: array.numpy() for key, array in record.items()})
        elif isinstance(record, MetricRecord):
            records[name] = fleet.MetricRecord(record)
        else:
            records[name] = fleet.ConfigRecord(record)
    return records


def to_record_dict(records: fleet.Records) -> RecordDict:
    """Return rootlet's records as Flower's."""
    content = RecordDict()
    for name, record in records.items():
        if isinstance(record, fleet.ArrayRecord):
            arrays = {key: Array(array) for key, array in record.items()}
            content[name] = ArrayRecord(arrays)
        elif isinstance(record, fleet.MetricRecord):
            content[name] = MetricRecord(dict(record))
        else:
            content[name] = ConfigRecord(dict(record))
    return content
