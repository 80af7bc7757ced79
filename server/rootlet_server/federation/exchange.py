"""Sends messages to devices and takes their answers as they arrive.

Flower's `Grid.send_and_receive` looks for answers every three seconds. Here the wait between two
looks is a fiftieth of the time waited so far, between 50 ms and one second: a short round ends at
once, and a long one does not wear the SuperLink down.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

_MIN_POLL_S = 0.05
_MAX_POLL_S = 1.0
_POLL_SHARE = 0.02


@dataclass(frozen=True)
class Answer:
    """One device's answer.

    Attributes:
        message: The answer, or Flower's error message.
        node: The node that was asked.
        round: The round for which it was asked.
        ticket: Of the requests that it was asked with.
        seconds: From the request to the answer.
    """

    message: Message
    node: int
    round: int
    ticket: int
    seconds: float


@dataclass(frozen=True)
class _Open:
    """A request without an answer."""

    node: int
    round: int
    ticket: int
    asked_s: float


class Exchange:
    """Requests that are out, and the answers to them.

    A request stays out until it is answered or its time to live is over, beyond the end of its
    round too, so that nobody is taken for idle who is still at an earlier one.

    Args:
        grid: Flower's link to the devices.
        lifetime_s: How long a request may be answered at all, in seconds.
        clock: Seconds that only go up.
        sleep: Waits a number of seconds.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        lifetime_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._sleep = sleep
        self._open: dict[str, _Open] = {}
        self._tickets = 0

    @property
    def busy(self) -> frozenset[int]:
        """Nodes that have not answered yet."""
        return frozenset(each.node for each in self._open.values())

    def ask(self, round_: int, messages: Sequence[Message]) -> int:
        """Push messages, one for each device; returns their ticket."""
        self._tickets += 1
        now = self._clock()
        pushed = self._grid.push_messages(messages) if messages else []
        for message_id, message in zip(pushed, messages, strict=True):
            if message_id:
                node = message.metadata.dst_node_id
                self._open[message_id] = _Open(node, round_, self._tickets, now)
        return self._tickets

    def answers(self, ticket: int, *, deadline_s: float) -> Iterator[list[Answer]]:
        """Yield what arrives until the answers to a ticket are all there or the deadline passes.

        Args:
            ticket: What is waited for; answers to earlier requests are yielded too.
            deadline_s: How long to wait, in seconds.

        Yields:
            The answers of one look, each once.
        """
        start = self._clock()
        while self._waits_for(ticket):
            yield self.arrived()
            waited_s = self._clock() - start
            if waited_s >= deadline_s:
                return
            if self._waits_for(ticket):
                self.pause(waited_s, most_s=deadline_s - waited_s)

    def arrived(self) -> list[Answer]:
        """The answers that came since the last look; requests beyond their time are forgotten."""
        if not self._open:
            return []
        replies = list(self._grid.pull_messages(list(self._open)))
        now, found = self._clock(), []
        for reply in replies:
            asked = self._open.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None:
                seconds = now - asked.asked_s
                found.append(Answer(reply, asked.node, asked.round, asked.ticket, seconds))
        self._open = {
            key: each for key, each in self._open.items() if now - each.asked_s <= self._lifetime_s
        }
        return found

    def pause(self, waited_s: float, *, most_s: float = _MAX_POLL_S) -> None:
        """Wait until the next look, after `waited_s` seconds without news."""
        self._sleep(min(max(_MIN_POLL_S, waited_s * _POLL_SHARE), _MAX_POLL_S, most_s))

    def _waits_for(self, ticket: int) -> bool:
        return any(each.ticket == ticket for each in self._open.values())
