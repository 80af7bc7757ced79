"""A device's participation: online, poll, answer, push, and leave without losing the last reply.

The session is a state machine over its `Mailbox`: each step moves the current message one stage
on and may be repeated, after a lost connection as well as after a restart.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Protocol

from rootlet.errors import (
    AuthenticationError,
    ConnectionFailedError,
    FleetError,
    MessageGoneError,
    NodeStillActiveError,
    ProtocolError,
    RunEndedError,
)
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer, Envelope, FleetRequest, SealedReply, open_envelope
from rootlet.fleet.events import EventKind, FleetEvent
from rootlet.fleet.heartbeat import Heartbeat
from rootlet.fleet.mailbox import Mailbox, Stage
from rootlet.fleet.patience import DEFAULT_POLLING, Outage, PollPolicy
from rootlet.protocol import ERROR_MALFORMED
from rootlet_runtime.cipher import PLAIN, Cipher

LINGER_S = 60.0
"""How long a leaving device waits for its last replies to be read, in seconds; a stock ServerApp
looks every 3 s."""

LINGER_POLL_S = 0.5
LINGER_FAILURES = 10
"""Unanswered looks after which a leaving device takes the server for gone."""

REMEMBERED_REPLIES = 8


class Participant(Protocol):
    """Who answers the requests."""

    def answer(self, request: FleetRequest, *, should_stop: Callable[[], bool]) -> Answer | None:
        """Return the answer; None where `should_stop` interrupted the work."""


class FleetSession:
    """One device's participation in whatever runs its server starts.

    Args:
        connection: To the server.
        participant: Answers the requests.
        state_dir: Where the current message and the node id outlive a crash; None for nowhere, so
            that a crash loses the message and locks the device out for two heartbeat intervals.
        cipher: What the message in that folder passes through.
        polling: How often to ask for work.
        linger_s: Longest wait for the last replies to be read when leaving, in seconds.
        activation_wait_s: Longest wait for a server that still counts this node as online, in
            seconds; by default two heartbeat intervals and five seconds.
    """

    def __init__(
        self,
        connection: FleetConnection,
        participant: Participant,
        *,
        state_dir: Path | None = None,
        cipher: Cipher = PLAIN,
        polling: PollPolicy = DEFAULT_POLLING,
        linger_s: float = LINGER_S,
        activation_wait_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._participant = participant
        self._mailbox = Mailbox(state_dir, cipher)
        self._polling = polling
        self._linger_s = linger_s
        self._activation_wait_s = (
            2 * connection.heartbeat_interval_s + 5.0
            if activation_wait_s is None
            else activation_wait_s
        )
        self._on_event: Callable[[FleetEvent], object] = lambda event: None
        self._pushed: deque[SealedReply] = deque(maxlen=REMEMBERED_REPLIES)

    def run(
        self, stop: Event, *, on_event: Callable[[FleetEvent], object] = lambda event: None
    ) -> None:
        """Participate until `stop` is set, then leave.

        Leaving keeps the node online until the server has read the replies (`linger_s` at most),
        because Flower drops the replies of a node that is offline. `on_event` is called from the
        thread that runs this, except for corrections of the clock.

        Raises:
            NodeStillActiveError: The server did not activate the node in `activation_wait_s`.
            AuthenticationError: The server refuses this node's signature.
            FleetError: Any other lasting refusal. A connection that fails is retried until `stop`.
        """
        self._on_event = on_event
        self._connection.clock.on_correction = self._clock_corrected
        online = False
        try:
            while not stop.is_set() and self._go_online(stop):
                online = True
                with Heartbeat(self._connection) as heartbeat:
                    self._serve(stop, heartbeat)
                    if stop.is_set():
                        self._push_what_is_ready(stop)
                        self._linger()
        finally:
            if online:
                self._leave()
            self._connection.close()

    # -- online and offline ----------------------------------------------------------------------

    def _go_online(self, stop: Event) -> bool:
        """Resume or activate; return whether that happened before `stop`."""
        connection = self._connection
        public_key = connection.node_key.public_pem
        known = self._mailbox.node_id(connection.address, public_key)
        deadline = time.monotonic() + self._activation_wait_s
        outage, told = Outage(self._emit), False
        while not stop.is_set():
            try:
                if known and connection.resume(known):
                    self._emit(EventKind.RESUMED, f"as node {known}")
                    return True
                node_id = connection.activate()
                self._mailbox.remember_node(connection.address, public_key, node_id)
                self._emit(EventKind.ACTIVATED, f"as node {node_id}")
            except NodeStillActiveError as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                if not told:
                    told = True
                    self._emit(
                        EventKind.WAITING_TO_ACTIVATE, f"{error}; waits {left_s:.0f} s at most"
                    )
                stop.wait(min(left_s, 2.0))
            except ConnectionFailedError as error:
                outage.wait(stop, error)
            else:
                return True
        return False

    def _leave(self) -> None:
        try:
            self._connection.deactivate()
        except (ConnectionFailedError, AuthenticationError) as error:
            self._emit(EventKind.DEACTIVATED, f"without telling the server: {error}")
        else:
            self._emit(EventKind.DEACTIVATED)

    def _push_what_is_ready(self, stop: Event) -> None:
        """Try once to push a reply that was answered before `stop`; it stays in the mailbox."""
        if self._mailbox.stage is Stage.ANSWERED:
            try:
                self._step(stop)
            except (ConnectionFailedError, AuthenticationError) as error:
                self._emit(EventKind.CONNECTION_LOST, f"{error}; the reply is kept for later")

    def _linger(self) -> None:
        """Stay until the server has read the replies."""
        if not self._pushed:
            return
        before = time.monotonic()
        waiting, failures = list(self._pushed), 0
        while waiting and failures < LINGER_FAILURES:
            try:
                waiting = [reply for reply in waiting if not self._connection.taken(reply)]
                failures = 0
            except FleetError as error:
                failures = failures + 1 if error.retryable else LINGER_FAILURES
            if time.monotonic() - before >= self._linger_s:
                break
            if waiting:
                time.sleep(LINGER_POLL_S)
        waited_s = time.monotonic() - before
        if waiting:
            reason = "the server is gone" if failures else "nobody read them"
            self._emit(
                EventKind.DROPPED,
                f"{len(waiting)} replies may be lost: {reason} in {waited_s:.0f} s",
            )
        else:
            self._emit(EventKind.TAKEN)

    # -- messages --------------------------------------------------------------------------------

    def _serve(self, stop: Event, heartbeat: Heartbeat) -> None:
        """Move messages on until `stop` is set or the server forgets the node."""
        outage = Outage(self._emit)
        last_message = time.monotonic()
        if self._mailbox.stage is not Stage.EMPTY:
            self._emit(EventKind.RECOVERED, f"at stage {self._mailbox.stage.name}")
        while not (stop.is_set() or heartbeat.lost.is_set()):
            try:
                idle = not self._step(stop)
                outage.over()
            except ConnectionFailedError as error:
                outage.wait(stop, error)
                continue
            except AuthenticationError:
                heartbeat.lost.set()
                continue
            if idle:
                stop.wait(self._polling.wait_s(time.monotonic() - last_message))
            else:
                last_message = time.monotonic()

    def _step(self, stop: Event) -> bool:
        """Move the current message one stage on; return whether there was one."""
        envelope = self._mailbox.envelope
        try:
            if envelope is None:
                return self._pull()
            if envelope.metadata.dst_node_id != self._connection.node_id:
                raise MessageGoneError("it was sent to a former id of this node")
            if envelope.expires_at <= self._connection.clock.now():
                raise MessageGoneError("it has expired")
            if self._mailbox.stage is Stage.PULLED:
                self._fetch(envelope)
            elif self._mailbox.stage is Stage.FETCHED:
                self._answer(envelope, stop)
            else:
                self._push()
        except (RunEndedError, MessageGoneError, ProtocolError) as error:
            self._emit(EventKind.DROPPED, str(error), envelope)
            self._mailbox.clear()
            return envelope is not None  # a refused question is no work: ask again after a wait
        return True

    def _pull(self) -> bool:
        envelope = self._connection.pull_messages()
        if envelope is None:
            return False
        self._mailbox.pulled(envelope)
        self._emit(EventKind.PULLED, "", envelope)
        return True

    def _fetch(self, envelope: Envelope) -> None:
        self._mailbox.fetched(self._connection.fetch(envelope))
        self._connection.confirm_message_received(envelope)

    def _answer(self, envelope: Envelope, stop: Event) -> None:
        try:
            request = open_envelope(envelope, self._mailbox.contents, self._connection.limits)
        except ProtocolError as error:
            answer: Answer | None = Answer({}, str(error), ERROR_MALFORMED)
        else:
            answer = self._participant.answer(request, should_stop=stop.is_set)
        if answer is not None:
            self._mailbox.answered(self._connection.seal(envelope, answer))
            self._emit(EventKind.ANSWERED, answer.error, envelope)

    def _push(self) -> None:
        reply, envelope = self._mailbox.reply, self._mailbox.envelope
        if reply is None:
            raise AssertionError("unreachable: the stage ANSWERED has a reply")
        if self._connection.push(reply):
            self._pushed.append(reply)
            self._emit(EventKind.PUSHED, "", envelope)
        else:
            self._emit(EventKind.DROPPED, "the server no longer wants the reply", envelope)
        self._mailbox.clear()

    # -- events ----------------------------------------------------------------------------------

    def _emit(self, kind: EventKind, detail: str = "", envelope: Envelope | None = None) -> None:
        if envelope is None:
            self._on_event(FleetEvent(kind, detail))
        else:
            message_type = str(envelope.metadata.message_type)
            self._on_event(FleetEvent(kind, detail, envelope.run_id, message_type))

    def _clock_corrected(self, offset_s: float) -> None:
        self._emit(
            EventKind.CLOCK_CORRECTED,
            f"this device's clock is {abs(offset_s):.0f} s "
            f"{'behind' if offset_s > 0 else 'ahead'}; signatures use the server's time, but "
            "please set the clock",
        )
