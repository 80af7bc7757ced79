"""A device's membership in a federation: sessions while the policy allows them, none while not."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rootlet import background, protocol
from rootlet.compression import UPDATE
from rootlet.errors import FleetError, LedgerError
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer, FleetRequest
from rootlet.fleet.events import EventKind, FleetEvent
from rootlet.fleet.objects import records_bytes
from rootlet.fleet.session import FleetSession
from rootlet.fleet.transport import Traffic
from rootlet.gate import Gate
from rootlet.learner import Learner
from rootlet.ledger import Ledger
from rootlet.participant import Participant
from rootlet.policy import Decision
from rootlet.protocol import CONTROL
from rootlet.secagg.messages import QUERY, SECURE
from rootlet.status import DeviceEvent, DeviceState, kept, rolled_back
from rootlet_runtime.cipher import Cipher
from rootlet_runtime.errors import CheckpointError

_log = logging.getLogger(__name__)

RETRY_S = 60.0
"""Pause after a failure that may pass, in seconds."""

_TICK_S = 0.2
_KINDS = {protocol.TRAIN: "update", protocol.EVALUATE: "metrics", QUERY: "stage"}
_ONLINE = {EventKind.ACTIVATED, EventKind.RESUMED, EventKind.CONNECTION_RESTORED}

Connect = Callable[[Callable[[float], object]], FleetConnection]


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a membership works with.

    Attributes:
        connect: Makes a connection that waits by the function it is given.
        learner: Holds the adapter.
        participant: Answers requests with the learner's trainer.
        gate: Says when.
        server: The server's address, for the ledger.
        ledger: Hears of everything that leaves, before it does.
        mailbox: Folder in which the message in hand outlives a crash.
        cipher: What that message passes through.
        tell: Hears of every event.
        recheck_s: Time between two looks at the policy while it says no, in seconds.
    """

    connect: Connect
    learner: Learner
    participant: Participant
    gate: Gate
    server: str
    ledger: Ledger
    mailbox: Path
    cipher: Cipher
    tell: Callable[[DeviceEvent], None]
    recheck_s: float


class Membership:
    """Takes part in a server's rounds whenever the policy allows it, until told to leave.

    While the policy says no there is no session: the device is offline and pulls nothing. When it
    turns to no, a training stops between two steps and goes on in a later session if the server
    still wants it; a reply that is ready is pushed first.

    Attributes:
        state: What the membership is doing.
        decision: What the policy said last.
        rounds: Rounds trained so far.
        left: Set when it is over.
    """

    def __init__(self, means: Means) -> None:
        self.state = DeviceState.CONNECTING
        self.decision: Decision | None = None
        self.rounds = 0
        self.left = threading.Event()
        self._means = means
        self._leaving = threading.Event()
        self._stop = threading.Event()
        self._reply_due = False
        self._earlier = Traffic()
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """Bytes moved so far, in all sessions."""
        up = self._earlier.up + self._traffic.up
        return Traffic(up=up, down=self._earlier.down + self._traffic.down)

    def leave(self) -> None:
        """Makes `run` return once the server has read the last reply."""
        self._leaving.set()
        self._stop_when_due()

    def run(self) -> None:
        """Takes part until told to leave.

        Raises:
            FleetError: A lasting refusal.
        """
        try:
            while not self._leaving.is_set():
                if self._may_go_on():
                    self._take_part_or_pause()
                else:
                    self.state = DeviceState.WAITING
                    self._leaving.wait(self._means.recheck_s)
        except Exception as error:
            if not isinstance(error, FleetError):
                _log.exception("the federation ended by an unforeseen error")
            self.state = DeviceState.FAILED
            self._means.tell(DeviceEvent(kind="gave up", detail=str(error)))
            raise
        else:
            self.state = DeviceState.IDLE
            self._means.tell(DeviceEvent(kind="left"))
        finally:
            self.left.set()

    def answer(self, request: FleetRequest, *, should_stop: Callable[[], bool]) -> Answer | None:
        """Answers a request; None where leaving or the policy interrupted it."""

        def interrupted() -> bool:
            return should_stop() or not self._may_go_on()

        busy = self._means.learner.busy
        while not busy.acquire(timeout=_TICK_S):  # the app trains locally
            if interrupted():
                self._interrupt()
                return None
        self.state = DeviceState.WORKING
        try:
            answer = self._means.participant.answer(request, should_stop=interrupted)
            if answer is None:
                self._means.learner.roll_back()
                self._interrupt()
                return None
            self._reply_due = True
            if request.message_type != QUERY:
                self._keep(request, answer)
            answer = self._recorded(request, answer)
        finally:
            self.state = DeviceState.ONLINE
            busy.release()
        return answer

    def _take_part_or_pause(self) -> None:
        try:
            self._take_part()
        except (FleetError, OSError) as error:  # OSError: the disk is full, and may have room later
            if isinstance(error, FleetError) and not error.retryable:
                raise
            detail = f"{error}; tries again in {RETRY_S:.0f} s"
            self._means.tell(DeviceEvent(kind="failed", detail=detail))
            self._leaving.wait(RETRY_S)

    def _take_part(self) -> None:
        """One session: until the policy says no or the device leaves."""
        self.state, self._reply_due = DeviceState.CONNECTING, False
        self._stop = stop = threading.Event()
        connection = self._means.connect(stop.wait)
        self._earlier, self._traffic = self.traffic, connection.traffic
        session = FleetSession(
            connection, self, state_dir=self._means.mailbox, cipher=self._means.cipher
        )
        watch = background.start("rootlet-policy", partial(self._watch, stop))
        try:
            session.run(stop, on_event=self._hear)
        finally:
            stop.set()
            watch.result()
            self._means.learner.release()  # a device that waits holds no training graph

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_TICK_S):
            self._stop_when_due()

    def _stop_when_due(self) -> None:
        """Ends the session if it must end, but not between a reply and its push."""
        if not self._reply_due and not self._may_go_on():
            self.state = DeviceState.LEAVING
            self._stop.set()

    def _interrupt(self) -> None:
        detail = "the work goes on when the device takes part again"
        self._means.tell(DeviceEvent(kind="interrupted", detail=detail))
        self._stop.set()

    def _may_go_on(self) -> bool:
        """Asks the policy; tells the app when it begins to say no, or for other reasons."""
        before, self.decision = self.decision, self._means.gate.decide()
        if not self.decision.allowed and (
            before is None or before.reasons != self.decision.reasons
        ):
            reasons = ", ".join(self.decision.reasons)
            self._means.tell(DeviceEvent(kind="waiting", detail=reasons))
        return self.decision.allowed and not self._leaving.is_set()

    def _keep(self, request: FleetRequest, answer: Answer) -> None:
        """Keeps a trained adapter and reports the reply; anything else leaves the adapter alone."""
        learner, trained = self._means.learner, request.message_type == protocol.TRAIN
        if answer.error or not trained:
            learner.roll_back()
        else:
            self._keep_adapter()
        fit = self._means.participant.last_fit
        if trained and fit is not None and fit.rolled_back:
            self._means.tell(rolled_back(fit))
        if answer.error:
            return
        metrics = answer.records["metrics"].items()
        self._means.tell(
            DeviceEvent(
                kind="trained" if trained else "evaluated",
                message_type=request.message_type,
                round=int(str(request.records["config"]["round"])),
                metrics={name: value for name, value in metrics if isinstance(value, int | float)},
            )
        )

    def _recorded(self, request: FleetRequest, answer: Answer) -> Answer:
        """Writes down what is about to leave; what cannot be written down does not leave."""
        manifest, kind = self._means.learner.trainer.bundle.manifest, "refusal"
        secure = SECURE in request.records
        spent = None if answer.error else self._means.participant.last_spent
        if not answer.error:
            kind = _KINDS[request.message_type]
        privacy = {} if spent is None else self._means.participant.account.charged(spent)
        protections = ["secure aggregation"] if secure else []
        protections += [] if spent is None else ["differential privacy"]
        names = {
            part: list(answer.records.get(part, ()))
            for part in ("arrays", UPDATE, CONTROL, "metrics")
        }
        try:
            self._means.ledger.append(
                kind,
                server=self._means.server,
                run=str(request.run_id),
                round=request.group_id,
                bundle=f"{manifest.name} {manifest.version}",
                bytes=records_bytes(answer.records) + len(answer.error.encode()),
                tensors=names["arrays"] + names[UPDATE] + names[CONTROL],
                metrics=names["metrics"],
                protection=", ".join(protections) or "none",
                **privacy,
                **({"stage": str(request.records[SECURE].get("stage", ""))} if secure else {}),
            )
        except LedgerError as error:
            self._means.tell(DeviceEvent(kind="failed", detail=f"nothing was sent: {error}"))
            return Answer({}, "this device cannot keep its ledger", protocol.ERROR_FAILED)
        return answer

    def _keep_adapter(self) -> None:
        try:
            verdict = self._means.learner.finish(self._means.participant.allowance)
            if verdict is not None and not verdict.accepted:  # the server still gets the update
                self._means.tell(kept(verdict))
        except CheckpointError as error:  # the server still gets the update
            self._means.learner.roll_back()
            self._means.tell(DeviceEvent(kind="failed", detail=str(error)))
        self.rounds += 1
        self._means.gate.count_round()

    def _hear(self, event: FleetEvent) -> None:
        if event.kind in _ONLINE:
            self.state = DeviceState.ONLINE
        elif event.kind is EventKind.CONNECTION_LOST:
            self.state = DeviceState.CONNECTING
        self._means.tell(
            DeviceEvent(kind=event.kind.value, detail=event.detail, message_type=event.message_type)
        )
        if event.kind in {EventKind.PUSHED, EventKind.DROPPED}:
            self._reply_due = False
            self._stop_when_due()  # before the next request is pulled
