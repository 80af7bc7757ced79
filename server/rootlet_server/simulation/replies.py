"""Messages of a simulated fleet: what a server asks, and the answers in Flower's own records."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from rootlet import protocol
from rootlet.errors import RecordError
from rootlet.fleet.objects import records_bytes
from rootlet.fleet.records import ArrayRecord as FleetArrays
from rootlet.flower import from_record_dict, to_record_dict
from rootlet.participant import DEFAULT_LIMITS
from rootlet_runtime.energy import count_work
from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation.batching import LocalTraining

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from rootlet_runtime.bundle import Bundle

    Arrays = Mapping[str, npt.NDArray[Any]]

SERVER_ROUND = "server-round"
_SETTINGS = {"epochs": "epochs", "batch-size": "batch_size", "learning-rate": "learning_rate"}


class ViewedArray(Array):
    """A Flower array whose bytes are made only if somebody reads them.

    Args:
        values: what it shows; not copied.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.__dict__.update(
            _values=values, dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray"
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as an .npy file."""
        found: bytes = Array(np.ascontiguousarray(self.numpy())).data
        return found

    def numpy(self) -> npt.NDArray[Any]:
        """The values themselves."""
        found: npt.NDArray[Any] = self.__dict__["_values"]
        return found


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one group of messages asks for.

    Attributes:
        received: the adapter.
        round: counted from 1; 0 where nothing says it.
        training: what to do; None to evaluate.
        native: whether the message is rootlet's own, as ``rootlet serve`` sends it.
        control: SCAFFOLD's mean control variate; None for none.
    """

    received: Arrays
    round: int
    training: LocalTraining | None
    native: bool
    control: Arrays | None = None


class Refused(Exception):  # noqa: N818 (an answer, not a failure)
    """A device would answer this request with an error.

    Args:
        code, reason: of the answer.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.error = Error(code, reason)


@contextmanager
def in_a_run() -> Iterator[None]:
    """Flower makes messages inside a task only; this process is one for a while."""
    names = ("_run_id", "_task_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name, value in before.items():
        setattr(TaskIdentity, name, 1 if value is None else value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def read_request(message: Message, bundle: Bundle, defaults: LocalTraining) -> Asked:
    """What a message asks for.

    Raises:
        Refused: a device refuses it too: another bundle, beyond its bounds, malformed.
        SimulationConfigError: a setting that no device of this bundle knows.
    """
    content = message.content
    trains = message.metadata.message_type == protocol.TRAIN
    configs, arrays = content.config_records, dict(content.array_records)
    mean = arrays.pop(protocol.CONTROL, None)
    if len(arrays) != 1:
        raise Refused(protocol.ERROR_MALFORMED, f"{len(arrays)} array records; 1 is expected")
    config: dict[str, Any] = {key: v for record in configs.values() for key, v in record.items()}
    if "manifest_sha256" in config:
        return _read_native(message, bundle, trains=trains)
    received = {name: array.numpy() for name, array in next(iter(arrays.values())).items()}
    _check_adapter(received, bundle)
    control = None
    if mean is not None:
        control = {name: array.numpy() for name, array in mean.items()}
        _check_adapter(control, bundle)
    settings = {}
    for key, value in config.items():
        name = key.replace("_", "-")
        if name in _SETTINGS:
            settings[_SETTINGS[name]] = value
        elif name != SERVER_ROUND:
            raise SimulationConfigError(
                f"config {key!r} = {value!r}: no device of this bundle knows it, and a simulation "
                f"that left it out would be another experiment; devices know {', '.join(_SETTINGS)}"
            )
    training = LocalTraining(
        epochs=int(settings.get("epochs", defaults.epochs)),
        batch_size=int(settings.get("batch_size", defaults.batch_size)),
        learning_rate=float(settings.get("learning_rate", defaults.learning_rate)),
        measure=defaults.measure,
    )
    return Asked(
        received=received,
        round=int(config.get(SERVER_ROUND, 0)),
        training=training if trains else None,
        native=False,
        control=control if trains else None,
    )


def _read_native(message: Message, bundle: Bundle, *, trains: bool) -> Asked:
    records = from_record_dict(message.content)
    kind = protocol.TrainRequest if trains else protocol.EvaluateRequest
    try:
        request = kind.from_records(records)
    except RecordError as error:
        raise Refused(protocol.ERROR_MALFORMED, str(error)) from error
    if request.manifest_sha256 != bundle.manifest_sha256:
        raise Refused(
            protocol.ERROR_REFUSED,
            f"the request is for bundle {request.bundle} {request.bundle_version}; these devices "
            f"run {bundle.manifest.name} {bundle.manifest.version}",
        )
    _check_adapter(request.adapter, bundle)
    training, control = None, None
    if isinstance(request, protocol.TrainRequest):
        control = request.control or None
        bounds = (
            ("epochs", request.epochs, DEFAULT_LIMITS.epochs),
            ("learning_rate", request.learning_rate, DEFAULT_LIMITS.learning_rate),
            ("batch_size", request.batch_size, bundle.manifest.max_batch),
        )
        for name, value, bound in bounds:
            if value > bound:
                raise Refused(
                    protocol.ERROR_REFUSED,
                    f"{name} is {value}; this device accepts at most {bound}: ask for less",
                )
        training = LocalTraining(
            epochs=request.epochs,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            measure=True,
        )
    return Asked(
        received=request.adapter, round=request.round, training=training, native=True,
        control=control,
    )  # fmt: skip


def _check_adapter(received: Arrays, bundle: Bundle) -> None:
    expected = {spec.name: tuple(spec.shape) for spec in bundle.manifest.adapter}
    found = {name: value.shape for name, value in received.items()}
    if found != expected:
        raise Refused(
            protocol.ERROR_REFUSED,
            f"the adapter holds {', '.join(sorted(found))[:200]}; the bundle's holds "
            f"{', '.join(sorted(expected))[:200]}, each in its own shape",
        )


def failure(message: Message, code: int, reason: str) -> Message:
    """A device's error as an answer."""
    return Message(Error(code, reason), reply_to=message)


def train_reply(
    message: Message,
    adapter: Arrays,
    metrics: Mapping[str, float],
    control: Arrays | None = None,
) -> Message:
    """A stock client's answer: one array record and one metric record, and SCAFFOLD's."""
    content = RecordDict({"arrays": _viewed(adapter), "metrics": MetricRecord(dict(metrics))})
    if control is not None:
        content[protocol.CONTROL] = _viewed(control)
    return Message(content, reply_to=message)


def _viewed(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: ViewedArray(value) for name, value in arrays.items()})


def evaluate_reply(message: Message, metrics: Mapping[str, float]) -> Message:
    """A stock client's answer to a request to evaluate."""
    return Message(RecordDict({"metrics": MetricRecord(dict(metrics))}), reply_to=message)


def native_train_reply(  # noqa: PLR0917 (one caller)
    message: Message,
    bundle: Bundle,
    adapter: Arrays,
    row: Mapping[str, Any],
    bytes_down: int,
    control: Arrays | None,
) -> Message:
    """The answer of ``rootlet.participant`` to a train request; its seconds are virtual."""
    examples, steps = int(row["examples"]), int(row["steps"])
    batch = protocol.TrainRequest.from_records(from_record_dict(message.content)).batch_size
    work = count_work(
        bundle.manifest.cost,
        train_examples=examples * (steps // max(1, -(-examples // min(batch, examples)))),
        train_batches=steps,
        predict_examples=2 * examples,
        predict_batches=2 * -(-examples // 64),
    )
    reply = protocol.TrainReply(
        metric=metric_name(bundle),
        adapter=adapter,
        num_examples=examples,
        loss=float(row["loss"]),
        received=float(row["received"]),
        trained=float(row["trained"]),
        train_s=float(row["seconds"]),
        energy_estimated_j=work.estimated_j,
        bytes_down=bytes_down,
        bytes_up=records_bytes({"arrays": FleetArrays(adapter)}),
        control=dict(control or {}),
    )
    return Message(to_record_dict(reply.to_records()), reply_to=message)


def native_evaluate_reply(message: Message, bundle: Bundle, row: Mapping[str, Any]) -> Message:
    """The answer of ``rootlet.participant`` to an evaluate request."""
    reply = protocol.EvaluateReply(
        metric=metric_name(bundle),
        num_examples=int(row["examples"]),
        loss=float(row["loss"]),
        received=float(row["received"]),
    )
    return Message(to_record_dict(reply.to_records()), reply_to=message)


def metric_name(bundle: Bundle) -> str:
    """``accuracy``, or ``error`` for a regression."""
    classifies = bundle.manifest.task == "classification"
    return protocol.METRICS[0 if classifies else 1]


def bytes_of(adapter: Arrays) -> int:
    """What an adapter takes on the wire."""
    return records_bytes({"arrays": FleetArrays({k: np.asarray(v) for k, v in adapter.items()})})
