"""A Flower ``Grid`` in this process: ServerApps and strategies run on it as they are.

A whole cohort's messages are answered by batched calls. Messages that carry the same records ask
for the same thing, and go together.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from rootlet import protocol
from rootlet_server.errors import PreAggregationError, SimulationConfigError
from rootlet_server.simulation import replies
from rootlet_server.simulation.columns import counted, joined, means
from rootlet_server.simulation.pace import DIVERGED, EMPTY, LOST, OK, timed
from rootlet_server.simulation.uploads import Partial, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy.typing as npt
    from flwr.app import RecordDict

    from rootlet_server.simulation.fleet import Fleet
    from rootlet_server.simulation.pace import Outcome
    from rootlet_server.simulation.replies import Asked
    from rootlet_server.simulation.work import ChunkReply

    Columns = dict[str, npt.NDArray[Any]]
    Finish = Callable[[Partial, Mapping[str, Any]], dict[str, Any]]

_REASONS = {
    EMPTY: (protocol.ERROR_REFUSED, "this device has no examples yet; at least 1 is needed"),
    DIVERGED: (protocol.ERROR_FAILED, "NonFiniteLossError: the loss left the finite numbers"),
    LOST: (protocol.ERROR_FAILED, "the device was lost during the round (simulated)"),
}
EACH = Upload(partial=False)
_NO_SUM = Partial(values={}, weight=1.0, clients=0)


class VectorGrid(Grid):
    """Answers messages by the fleet. Node n is client n - 1.

    Args:
        fleet: the clients.
        upload: how updates leave a chunk: every one, or averages of chunks, which only strategies
            that average may be given.
        finish: makes one answer of the sum of all chunks; None to answer chunk by chunk.
        on_clients: called with what became of the clients of a group of messages.

    Attributes:
        now_s: virtual time.
        offered: the nodes that a strategy sees; None for all.
        outcome: of the last group of messages.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        upload: Upload = EACH,
        finish: Finish | None = None,
        on_clients: Callable[[Asked, Columns, Outcome], None] | None = None,
    ) -> None:
        self.now_s = 0.0
        self.offered: list[int] | None = None
        self.outcome: Outcome | None = None
        self._fleet = fleet
        self._upload = upload
        self._finish = finish
        self._on_clients = on_clients
        self._run = Run.create_empty(run_id=1)
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._answers: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Takes the run that a ServerApp belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The nodes that are there now."""
        if self.offered is not None:
            return self.offered
        count = len(self._fleet.population)
        if self._fleet.availability is None:
            return list(range(1, count + 1))
        there = self._fleet.availability.available(np.arange(count), self.now_s)
        return (np.flatnonzero(there) + 1).tolist()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Takes messages; they are answered when somebody pulls."""
        ids = []
        for message in messages:
            number = f"simulated-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            self._waiting[number] = message
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers that are there, by node; late clients give none.

        Flower's strategies ask nodes in an order that they draw from Python's own generator, and
        add replies up as they come: sorted, the same answers give the same sum.
        """
        self._answer_all()
        found = [self._answers.pop(each) for each in message_ids if each in self._answers]
        return sorted(found, key=lambda answer: answer.metadata.src_node_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push and pull; a timeout is of wall time, and nothing here waits for the wall clock."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _answer_all(self) -> None:
        groups: dict[tuple[str, tuple[int, ...]], list[Message]] = {}
        for message in self._waiting.values():
            records = tuple(id(record) for record in message.content.values())
            key = (message.metadata.message_type, records)
            groups.setdefault(key, []).append(message)
        self._waiting = {}
        for messages in groups.values():
            messages.sort(key=lambda message: message.metadata.dst_node_id)
            for answer in self._answer(messages):
                self._answers[answer.metadata.reply_to_message_id] = answer

    def _answer(self, messages: list[Message]) -> list[Message]:
        fleet = self._fleet
        try:
            asked = replies.read_request(messages[0], fleet.bundle, fleet.training)
        except replies.Refused as refused:
            error = refused.error
            return [replies.failure(each, error.code, str(error.reason)) for each in messages]
        clients = np.array([message.metadata.dst_node_id - 1 for message in messages], np.int64)
        by_client = dict(zip(clients.tolist(), messages, strict=True))
        if len(by_client) < len(messages):
            raise SimulationConfigError(
                "a strategy asks one node twice for the same thing in one round; ask each once"
            )
        outcome = self._time(asked, clients)
        working = clients[outcome.answering]
        upload = self._upload if asked.training is not None else EACH
        if upload.partial and asked.native:
            raise PreAggregationError(
                "rootlet's own round loop reads every device's reply; run it without partial sums"
            )
        seconds = dict(zip(clients.tolist(), outcome.seconds.tolist(), strict=True))
        answers: list[Message] = []
        columns: list[Columns] = []
        total: Partial | None = None
        for chunk in fleet.ask(
            working, asked.round, asked.received, asked.training, upload, control=asked.control
        ):
            columns.append(chunk.columns)
            if chunk.partial is None:
                answers += self._each(asked, chunk, by_client, seconds)
            elif chunk.partial.clients and self._finish is None:
                answers.append(self._part(asked, chunk, by_client))
            elif chunk.partial.clients:
                part = chunk.partial
                total = part if total is None else total.plus(part, upload.secure)
        answers += [
            replies.failure(by_client[client], *_REASONS[LOST])
            for client in clients[outcome.status == LOST].tolist()
        ]
        together = joined(columns)
        if upload.partial:
            answers += self._failures(together, by_client)
        if total is not None and self._finish is not None:
            answers.append(self._whole(asked, total, together, by_client))
        self._note(asked, together, clients, outcome)
        return answers

    def _time(self, asked: Asked, clients: npt.NDArray[np.int64]) -> Outcome:
        """Who answers in time; the virtual clock goes on."""
        fleet, examples, latency = self._fleet, clients * 0, None
        if self._fleet.latency is not None and asked.training is not None:
            latency, examples = fleet.latency, fleet.examples(clients, asked.training)
        self.outcome = timed(
            latency, fleet.pace, clients, examples, (fleet.bytes_each,) * 2, asked.round
        )
        self.now_s += self.outcome.round_s
        return self.outcome

    def _each(
        self,
        asked: Asked,
        chunk: ChunkReply,
        by_client: Mapping[int, Message],
        seconds: Mapping[int, float],
    ) -> list[Message]:
        """One answer for each client of a chunk."""
        columns = {name: values.tolist() for name, values in chunk.columns.items()}
        answers = []
        for k, client in enumerate(columns["client"]):
            message = by_client[int(client)]
            row = {name: values[k] for name, values in columns.items()}
            row["seconds"] = seconds[int(client)]
            if not row["examples"] or not row["finite"]:
                answers.append(replies.failure(message, *_REASONS[_status(row)]))
            elif asked.training is None:
                answers.append(self._measured(asked, message, row))
            else:
                adapter = {name: value[k] for name, value in (chunk.adapters or {}).items()}
                control = None
                if chunk.control is not None:
                    control = {name: value[k] for name, value in chunk.control.items()}
                answers.append(self._trained(asked, message, adapter, row, control))
        return answers

    def _trained(
        self,
        asked: Asked,
        message: Message,
        adapter: Mapping[str, Any],
        row: Mapping[str, Any],
        control: Mapping[str, Any] | None,
    ) -> Message:
        bundle = self._fleet.bundle
        if asked.native:
            down = self._fleet.bytes_each
            return replies.native_train_reply(message, bundle, adapter, row, down, control)
        metrics = {"num-examples": int(row["examples"]), "loss": row["loss"]}
        if asked.training is not None and asked.training.measure:
            name = replies.metric_name(bundle)
            metrics |= {f"{name}_received": row["received"], f"{name}_trained": row["trained"]}
        return replies.train_reply(message, adapter, metrics, control)

    def _measured(self, asked: Asked, message: Message, row: Mapping[str, Any]) -> Message:
        bundle = self._fleet.bundle
        if asked.native:
            return replies.native_evaluate_reply(message, bundle, row)
        name = replies.metric_name(bundle)
        metrics = {"num-examples": int(row["examples"]), "loss": row["loss"]}
        return replies.evaluate_reply(message, metrics | {name: row["received"]})

    def _part(self, asked: Asked, chunk: ChunkReply, by_client: Mapping[int, Message]) -> Message:
        """One answer for a chunk: the weighted mean, weighing as much as all its clients."""
        columns, mean = chunk.columns, (chunk.partial or _NO_SUM).mean(None)
        keep = counted(columns)
        adapter = {name: value.astype(np.float32) for name, value in mean.items()}
        metrics = means(columns, keep, asked, replies.metric_name(self._fleet.bundle))
        first = int(columns["client"][keep][0])
        return replies.train_reply(by_client[first], adapter, metrics)

    def _whole(
        self, asked: Asked, total: Partial, columns: Columns, by_client: Mapping[int, Message]
    ) -> Message:
        """One answer for everybody: what a server sees that cannot see single updates."""
        keep = counted(columns)
        adapter = (self._finish or _refuse)(total, asked.received)
        metrics = means(columns, keep, asked, replies.metric_name(self._fleet.bundle))
        return replies.train_reply(by_client[int(columns["client"][keep][0])], adapter, metrics)

    def _failures(self, columns: Columns, by_client: Mapping[int, Message]) -> list[Message]:
        lines = zip(
            *(columns[name].tolist() for name in ("client", "examples", "finite")), strict=True
        )
        return [
            replies.failure(by_client[int(client)], *_REASONS[DIVERGED if examples else EMPTY])
            for client, examples, finite in lines
            if not (examples and finite)
        ]

    def _note(
        self, asked: Asked, columns: Columns, clients: npt.NDArray[np.int64], outcome: Outcome
    ) -> None:
        if self._on_clients is None:
            return
        status = dict(zip(clients.tolist(), outcome.status.tolist(), strict=True))
        lines = zip(columns["client"].tolist(), columns["examples"], columns["finite"], strict=True)
        for client, examples, finite in lines:
            status[int(client)] = OK if examples and finite else DIVERGED if examples else EMPTY
        order = np.argsort(columns["client"])
        where = dict(zip(columns["client"][order].tolist(), order.tolist(), strict=True))
        rows = np.array([where.get(client, -1) for client in clients.tolist()], np.int64)
        told: Columns = {"client": clients, "seconds": outcome.seconds}
        told["status"] = np.array([status[client] for client in clients.tolist()], object)
        for name in ("examples", "steps", "loss", "metric", "received", "trained"):
            values = columns[name].astype(np.float64)
            told[name] = np.where(rows >= 0, np.append(values, np.nan)[rows], np.nan)
        self._on_clients(asked, told, outcome)


def _refuse(*_: Any) -> dict[str, Any]:
    raise PreAggregationError("nothing says what to make of the sum")


def _status(row: Mapping[str, Any]) -> str:
    return DIVERGED if row["examples"] else EMPTY
