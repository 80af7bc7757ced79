"""Sends messages to devices and yields their answers as they arrive.

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
        seconds: From the request to the answer.
    """

    message: Message
    node: int
    seconds: float


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Answer]:
    """Push `messages`, then yield answers until all are there or the deadline passes.

    Args:
        grid: Flower's link to the devices.
        messages: One for each device.
        deadline_s: How long to wait for answers, in seconds.
        clock: Seconds that only go up.
        sleep: Waits a number of seconds.

    Yields:
        Each answer once, in the order of arrival.
    """
    if not messages:
        return
    start = clock()
    nodes = {
        message_id: message.metadata.dst_node_id
        for message_id, message in zip(grid.push_messages(messages), messages, strict=True)
        if message_id
    }
    while nodes:
        for reply in grid.pull_messages(list(nodes)):
            node = nodes.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield Answer(reply, node, clock() - start)
        waited_s = clock() - start
        if not nodes or waited_s >= deadline_s:
            return
        poll_s = min(max(_MIN_POLL_S, waited_s * _POLL_SHARE), _MAX_POLL_S)
        sleep(min(poll_s, deadline_s - waited_s))
