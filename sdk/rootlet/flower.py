"""The same participant behind a stock Flower `ClientApp`, for those who run SuperNodes.

The only module of the SDK that imports flwr: `pip install "rootlet[server]"`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rootlet.fleet import records as fleet
from rootlet.fleet.envelope import FleetRequest
from rootlet.fleet.objects import records_bytes
from rootlet.participant import DEFAULT_LIMITS, DataSource, Participant, RoundLimits
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


def client_app(
    bundle: Bundle,
    data: DataSource | Callable[[Context], DataSource],
    *,
    limits: RoundLimits = DEFAULT_LIMITS,
    num_threads: int = 1,
    rng: np.random.Generator | None = None,
    checkpoint_dir: Path | None = None,
) -> ClientApp:
    """Return a ClientApp that answers as a rootlet device does.

    Args:
        bundle: The verified bundle.
        data: The examples, or a function from Flower's Context (which has the node's
            configuration, such as `partition-id`) to them.
        limits: Bounds on what a server may ask for.
        num_threads: Threads of the engine.
        rng: Draws the order of the examples.
        checkpoint_dir: Where an interrupted training goes on from.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        source = data(context) if callable(data) else data
        participant = Participant(
            Trainer(bundle, num_threads=num_threads),
            source,
            limits=limits,
            rng=rng,
            checkpoint_dir=checkpoint_dir,
        )
        return _answer(participant, message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


def _answer(participant: Participant, message: Message) -> Message:
    records = from_record_dict(message.content)
    request = FleetRequest(
        run_id=message.metadata.run_id,
        group_id=message.metadata.group_id,
        message_type=message.metadata.message_type,
        records=records,
        n_bytes=records_bytes(records),
    )
    answer = participant.answer(request)
    if answer is None:
        raise AssertionError("unreachable: nothing stops the training")
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
