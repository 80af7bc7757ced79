"""Heartbeats in the background, so that a device that trains for minutes stays online."""

import threading
from types import TracebackType
from typing import Self

from rootlet.errors import FleetError
from rootlet.fleet.connection import FleetConnection

SENT_AT = 0.8
"""Fraction of the interval after which the next heartbeat is due."""

RETRIED_AT = 0.2
"""Fraction of the interval after which a failed heartbeat is repeated."""


class Heartbeat:
    """Sends heartbeats while its `with` block runs, and none once it is left.

    A heartbeat puts a node online, also one that has just been deactivated: leaving the block waits
    for a heartbeat under way, so that none can follow a deactivation.

    Attributes:
        lost: Set when the server no longer knows the node or refuses its signature.
    """

    def __init__(self, connection: FleetConnection) -> None:
        self.lost = threading.Event()
        self._connection = connection
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rootlet-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = SENT_AT
        while not self._stop.wait(due * self._connection.heartbeat_interval_s):
            try:
                if not self._connection.heartbeat():
                    self.lost.set()
                due = SENT_AT
            except FleetError as error:
                if not error.retryable:
                    self.lost.set()
                due = RETRIED_AT
