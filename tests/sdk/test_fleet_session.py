"""The session's state machine against a SuperLink in memory, with every kind of interruption."""

import threading
import time
from collections import Counter

import numpy as np
import pytest

from rootlet.errors import (
    AuthenticationError,
    ConnectionFailedError,
    NodeStillActiveError,
    ProtocolError,
    RunEndedError,
    ServerRefusedError,
)
from rootlet.fleet import patience
from rootlet.fleet import session as session_module
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.decode import decode_message
from rootlet.fleet.envelope import Answer
from rootlet.fleet.events import EventKind
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.mailbox import Mailbox, Stage
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import ObjectSet, encode_message
from rootlet.fleet.patience import PollPolicy
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord
from rootlet.fleet.session import FleetSession
from rootlet.protocol import ERROR_MALFORMED

KEY = NodeKey.generate()
NODE = 2**63 + 11
RUN = 77


class FakeSuperLink:
    """A transport that behaves like a SuperLink, as far as one node sees it.

    Attributes:
        failures: Errors to raise by call; "after <call>" raises once the call took effect.
    """

    def __init__(self):
        self.online, self.known = False, True
        self.queue, self.objects, self.replies, self.pending = [], {}, {}, set()
        self.calls, self.failures = Counter(), {}
        self.run_ended = False
        self.lock = threading.RLock()

    def close(self):
        self.calls["close"] += 1

    def post(self, path, body):
        call = path.rpartition("/")[2]
        name = {
            "register-node": "RegisterNodeFleet",
            "unregister-node": "UnregisterNodeFleet",
        }.get(call, call.title().replace("-", ""))
        with self.lock:
            self.calls[call] += 1
            self._fail(call)
            request = MESSAGES[f"{name}Request"].FromString(body)
            answer = getattr(self, call.replace("-", "_"))(request) or {}
            self._fail(f"after {call}")
        return MESSAGES[f"{name}Response"](**answer).SerializeToString()

    def _fail(self, call):
        if self.failures.get(call):
            raise self.failures[call].pop(0)

    def ask(self, content=None, *, ttl=60.0):
        """Queue a request; return its id."""
        metadata = MESSAGES["Metadata"](
            run_id=RUN, src_node_id=1, dst_node_id=NODE, group_id="1", message_type="train",
            ttl=ttl, created_at=time.time(),
        )  # fmt: skip
        records = content or {
            "arrays": ArrayRecord(w=np.arange(3, dtype=np.float32)),
            "config": ConfigRecord(round=len(self.queue)),
        }
        objects, root = encode_message(MESSAGES["Message"](metadata=metadata), records)
        metadata.message_id = root
        with self.lock:
            self.objects |= objects.contents
            self.queue.append((metadata, objects.tree(root)))
        return root

    def read(self, request_id, timeout_s=5.0):
        """Take the reply to a request, as a ServerApp does."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self.lock:
                message = self.replies.get(request_id)
                complete = message is not None and not self.pending
                if complete and self.online:
                    root = message.metadata.message_id
                    got = decode_message(root, self.objects)
                    del self.objects[root]
                    return got
            time.sleep(0.01)
        raise AssertionError("no reply")

    # -- the calls ---------------------------------------------------------------------------

    def register_node(self, request):
        raise ServerRefusedError("disabled", status=403, code=2001)

    def activate_node(self, request):
        if self.online or not self.known:
            raise NodeStillActiveError("still active")
        self.online = True
        return {"node_id": NODE}

    def deactivate_node(self, request):
        if not self.online:
            raise ServerRefusedError("offline", status=412, code=2005)
        self.online = False

    def send_node_heartbeat(self, request):
        if request.node.node_id != NODE or not self.known:
            raise AuthenticationError("401")
        self.online = True
        return {"success": True}

    def pull_messages(self, request):
        if not self.queue:
            return {}
        metadata, tree = self.queue.pop(0)
        return {
            "messages_list": [MESSAGES["Message"](metadata=metadata)],
            "message_object_trees": [tree],
        }

    def pull_object(self, request):
        if self.run_ended:
            raise RunEndedError("the run is not running")
        content = self.objects.get(request.object_id)
        return {
            "object_found": content is not None,
            "object_available": bool(content),
            "object_content": content or b"",
        }

    def confirm_message_received(self, request):
        self.objects.pop(request.message_object_id, None)

    def push_messages(self, request):
        if self.run_ended:
            raise RunEndedError("the run is not running")
        (message,), (tree,) = request.messages_list, request.message_object_trees
        known = self.replies.get(message.metadata.reply_to_message_id)
        if known and known.metadata.message_id != message.metadata.message_id:
            return {"session_id": "s"}
        self.replies[message.metadata.reply_to_message_id] = message
        wanted, walk = [], [tree]
        while walk:
            node = walk.pop()
            walk.extend(node.children)
            if not self.objects.get(node.object_id):
                self.objects[node.object_id] = b""
                wanted.append(node.object_id)
        self.pending |= set(wanted)
        return {"session_id": "s", "objects_to_push": wanted}

    def push_object(self, request):
        stored = request.object_id in self.pending
        if stored:
            self.objects[request.object_id] = request.object_content
            self.pending.discard(request.object_id)
        return {"stored": stored}


class Doubler:
    def __init__(self):
        self.seen = []

    def answer(self, request, *, should_stop):
        self.seen.append(request)
        doubled = ArrayRecord({k: 2 * v for k, v in request.records["arrays"].items()})
        return Answer({"arrays": doubled, "metrics": MetricRecord({"num-examples": 1})})


class Runner:
    """A session in a thread, over a fake SuperLink, without real waits."""

    def __init__(self, link, participant=None, *, state_dir=None, **options):
        self.link, self.participant = link, participant or Doubler()
        self.events, self.error, self.stop_event = [], None, threading.Event()
        self.connection = FleetConnection(
            "127.0.0.1:1", node_key=KEY, transport=link, heartbeat_interval_s=10.0
        )
        options = {
            "polling": PollPolicy(min_s=0.01, max_s=0.01),
            "linger_s": 2.0,
            "activation_wait_s": 0.2,
        } | options
        self.session = FleetSession(
            self.connection, self.participant, state_dir=state_dir, **options
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            self.session.run(self.stop_event, on_event=self.events.append)
        except Exception as error:
            self.error = error

    def stop(self):
        self.stop_event.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self

    def kinds(self):
        return [event.kind for event in self.events]

    def wait_for(self, kind, timeout_s=5.0):
        deadline = time.monotonic() + timeout_s
        while kind not in self.kinds():
            assert time.monotonic() < deadline, (self.events, self.error)
            time.sleep(0.005)


@pytest.fixture
def link():
    return FakeSuperLink()


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(session_module, "LINGER_POLL_S", 0.01)
    monkeypatch.setattr(patience, "RECONNECT_MAX_S", 0.01)


def doubled(got):
    _, records = got
    return records["arrays"]["w"].tolist() == [0.0, 2.0, 4.0]


def test_a_request_is_answered_and_its_objects_confirmed(link):
    runner = Runner(link)
    request = link.ask()
    assert doubled(link.read(request))
    runner.stop()
    assert runner.kinds() == [
        EventKind.ACTIVATED,
        EventKind.PULLED,
        EventKind.ANSWERED,
        EventKind.PUSHED,
        EventKind.TAKEN,
        EventKind.DEACTIVATED,
    ]
    assert request not in link.objects
    assert not link.online
    assert runner.participant.seen[0].n_bytes > 500
    assert [(event.run_id, event.message_type) for event in runner.events[1:4]] == [
        (RUN, "train")
    ] * 3


def test_leaving_waits_for_the_reply_to_be_read(link):
    runner = Runner(link)
    request = link.ask()
    runner.wait_for(EventKind.PUSHED)
    runner.stop_event.set()
    time.sleep(0.2)
    assert link.online  # it lingers
    assert doubled(link.read(request))
    runner.stop()
    assert runner.kinds()[-2:] == [EventKind.TAKEN, EventKind.DEACTIVATED]


def test_leaving_does_not_wait_longer_than_the_linger(link):
    runner = Runner(link, linger_s=0.05)
    link.ask()
    runner.wait_for(EventKind.PUSHED)
    runner.stop()
    assert runner.kinds()[-2:] == [EventKind.DROPPED, EventKind.DEACTIVATED]
    assert "1 replies may be lost: nobody read them" in runner.events[-2].detail


def test_leaving_does_not_wait_for_a_server_that_is_gone(link):
    runner = Runner(link, linger_s=60.0)
    link.ask()
    runner.wait_for(EventKind.PUSHED)
    for call in ("pull-object", "deactivate-node", "pull-messages"):
        link.failures[call] = [ConnectionFailedError("gone")] * 1000
    runner.stop()
    assert "the server is gone" in runner.events[-2].detail
    assert "without telling the server" in runner.events[-1].detail


@pytest.mark.parametrize(
    "call",
    [
        *("pull-messages", "pull-object", "confirm-message-received", "push-messages"),
        *("push-object", "after confirm-message-received", "after push-messages"),
        *("after push-object", "after pull-object"),
    ],
)
def test_a_lost_connection_at_any_call_loses_nothing(link, call):
    link.failures[call] = [ConnectionFailedError("cable cut"), ConnectionFailedError("again")]
    runner = Runner(link)
    request = link.ask()
    assert doubled(link.read(request))
    runner.stop()
    assert runner.kinds().count(EventKind.CONNECTION_LOST) >= 1
    assert EventKind.CONNECTION_RESTORED in runner.kinds()
    assert len(runner.participant.seen) == 1  # and nothing is trained twice
    assert EventKind.DROPPED not in runner.kinds()


@pytest.mark.parametrize("stage", [Stage.PULLED, Stage.FETCHED, Stage.ANSWERED])
def test_a_crash_at_any_stage_is_finished_after_the_restart(link, tmp_path, stage):
    class Crash(BaseException):
        pass

    class Crashing(Doubler):
        def answer(self, request, *, should_stop):
            if stage is Stage.FETCHED:
                raise Crash
            return super().answer(request, should_stop=should_stop)

    call = {Stage.PULLED: "pull-object", Stage.ANSWERED: "push-messages"}.get(stage)
    if call:
        link.failures[call] = [Crash()]
    request = link.ask()
    connection = FleetConnection("127.0.0.1:1", node_key=KEY, transport=link)
    link.failures["deactivate-node"] = [Crash()]  # a crash does not say goodbye
    with pytest.raises(Crash):
        FleetSession(connection, Crashing(), state_dir=tmp_path).run(threading.Event())
    assert Mailbox(tmp_path).stage is stage
    assert link.online

    runner = Runner(link, state_dir=tmp_path)
    assert doubled(link.read(request))
    runner.stop()
    assert runner.kinds()[:2] == [EventKind.RESUMED, EventKind.RECOVERED]
    assert len(runner.participant.seen) == (0 if stage is Stage.ANSWERED else 1)
    assert Mailbox(tmp_path).stage is Stage.EMPTY


def test_an_interrupted_answer_is_taken_up_again(link, tmp_path):
    class Patient(Doubler):
        def answer(self, request, *, should_stop):
            while not should_stop():
                time.sleep(0.005)

    runner = Runner(link, Patient(), state_dir=tmp_path)
    request = link.ask()
    runner.wait_for(EventKind.PULLED)
    runner.stop()
    assert Mailbox(tmp_path).stage is Stage.FETCHED
    Runner(link, state_dir=tmp_path)
    assert doubled(link.read(request))


def test_a_reply_that_is_ready_is_pushed_before_leaving(link):
    class Last(Doubler):
        def answer(self, request, *, should_stop):
            runner.stop_event.set()
            return super().answer(request, should_stop=should_stop)

    runner = Runner(link, Last())
    request = link.ask()
    assert doubled(link.read(request))
    runner.stop()
    assert runner.kinds()[-3:] == [EventKind.PUSHED, EventKind.TAKEN, EventKind.DEACTIVATED]


def test_a_server_that_counts_the_node_as_online_is_waited_for(link):
    link.online = True
    runner = Runner(link, activation_wait_s=30.0)
    runner.wait_for(EventKind.WAITING_TO_ACTIVATE)
    asked = link.calls["activate-node"]
    deadline = time.monotonic() + 30.0
    while link.calls["activate-node"] == asked:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    link.online = False
    runner.wait_for(EventKind.ACTIVATED)
    runner.stop()
    assert runner.kinds().count(EventKind.WAITING_TO_ACTIVATE) == 1  # told once, not at each try


def test_the_wait_to_activate_is_bounded(link):
    link.known = False
    runner = Runner(link)
    runner.thread.join(5)
    assert isinstance(runner.error, NodeStillActiveError)
    assert link.calls["deactivate-node"] == 0


def test_a_forgotten_node_id_is_replaced(link, tmp_path):
    Mailbox(tmp_path).remember_node("127.0.0.1:1", KEY.public_pem, 12345)
    runner = Runner(link, state_dir=tmp_path)
    runner.wait_for(EventKind.ACTIVATED)
    runner.stop()
    assert Mailbox(tmp_path).node_id("127.0.0.1:1", KEY.public_pem) == NODE
    assert Mailbox(tmp_path).node_id("127.0.0.1:2", KEY.public_pem) == 0
    assert Mailbox(tmp_path).node_id("127.0.0.1:1", NodeKey.generate().public_pem) == 0


def test_a_node_that_the_server_refuses_midway_goes_online_again(link):
    link.failures["pull-messages"] = [AuthenticationError("401")]
    runner = Runner(link)
    deadline = time.monotonic() + 5
    while link.calls["pull-messages"] < 3:
        assert time.monotonic() < deadline
        link.online = False
        time.sleep(0.01)
    runner.stop()
    assert runner.kinds().count(EventKind.ACTIVATED) == 2


def test_a_message_of_an_ended_run_is_dropped(link):
    class Slow(Doubler):
        def answer(self, request, *, should_stop):
            link.run_ended = True
            return super().answer(request, should_stop=should_stop)

    runner = Runner(link, Slow())
    link.ask()
    runner.wait_for(EventKind.DROPPED)
    runner.stop()
    assert link.calls["push-messages"] == 1


def test_an_expired_message_is_dropped(link):
    runner = Runner(link)
    link.ask(ttl=-1.0)
    runner.wait_for(EventKind.DROPPED)
    runner.stop()
    assert runner.participant.seen == []
    assert "expired" in next(e for e in runner.events if e.kind is EventKind.DROPPED).detail


def test_a_malformed_request_is_answered_with_an_error(link):
    metadata = MESSAGES["Metadata"](
        run_id=RUN, src_node_id=1, dst_node_id=NODE, message_type="train", ttl=60.0,
        created_at=time.time(),
    )  # fmt: skip
    objects = ObjectSet()
    record = objects.add("ArrayRecord", [], b"not JSON")
    content = objects.add("RecordDict", [record], b'{"arrays": "%s"}' % record.encode())
    message = MESSAGES["Message"](metadata=metadata).SerializeToString()
    metadata.message_id = root = objects.add("Message", [content], message)
    link.objects |= objects.contents
    link.queue.append((metadata, objects.tree(root)))
    runner = Runner(link)
    reply, records = link.read(root)
    assert records is None
    assert (reply.error.code, reply.error.reason[:12]) == (ERROR_MALFORMED, "the body of ")
    runner.stop()
    assert runner.participant.seen == []


def test_an_object_that_does_not_match_its_hash_drops_the_message(link):
    request = link.ask()
    link.objects[request] += b"x"
    runner = Runner(link)
    runner.wait_for(EventKind.DROPPED)
    assert doubled(link.read(link.ask()))  # and the device lives on
    runner.stop()


def test_a_server_that_asks_for_unknown_objects_is_refused(link):
    runner = Runner(link)
    original = link.push_messages
    link.push_messages = lambda request: original(request) | {"objects_to_push": ["f" * 64]}
    link.ask()
    runner.wait_for(EventKind.DROPPED)
    link.push_messages = original
    runner.stop()


def test_heartbeats_continue_while_the_device_trains(link, monkeypatch):
    from rootlet.fleet import heartbeat

    monkeypatch.setattr(heartbeat, "SENT_AT", 0.002)

    class Slow(Doubler):
        def answer(self, request, *, should_stop):
            time.sleep(0.3)
            return super().answer(request, should_stop=should_stop)

    runner = Runner(link, Slow())
    request = link.ask()
    link.read(request)
    assert link.calls["send-node-heartbeat"] > 5
    runner.stop()
    beats = link.calls["send-node-heartbeat"]
    time.sleep(0.1)
    assert link.calls["send-node-heartbeat"] == beats  # none after the deactivation
    assert not link.online


def test_two_messages_at_once_are_a_protocol_error(link):
    first, second = link.ask(), link.ask({"metrics": MetricRecord(a=1)})
    assert first != second
    pairs = [link.queue.pop(0) for _ in range(2)]
    link.pull_messages = lambda request: {
        "messages_list": [MESSAGES["Message"](metadata=metadata) for metadata, _ in pairs],
        "message_object_trees": [tree for _, tree in pairs],
    }
    connection = FleetConnection("127.0.0.1:1", node_key=KEY, transport=link)
    connection.activate()
    with pytest.raises(ProtocolError, match="one at a time"):
        connection.pull_messages()


def test_a_server_that_announces_nonsense_is_asked_no_more_often(link):
    def nonsense(request):
        return {"messages_list": [MESSAGES["Message"]()]}  # without its tree

    link.pull_messages = nonsense
    runner = Runner(link, polling=PollPolicy(min_s=0.2, max_s=0.2))
    runner.wait_for(EventKind.DROPPED)
    time.sleep(0.5)
    runner.stop()
    assert link.calls["pull-messages"] <= 4  # 0.5 s / 0.2 s, the first, and one for a slow machine


def test_garbage_answers_are_a_protocol_error():
    class Garbage:
        def post(self, path, body):
            return b"\xff" * 20

        def close(self):
            pass

    with pytest.raises(ProtocolError, match="garbage"):
        FleetConnection("127.0.0.1:1", transport=Garbage()).activate()


@pytest.mark.parametrize(
    ("idle_s", "wait_s"), [(0.0, 0.2), (4.0, 0.2), (20.0, 1.0), (100.0, 5.0), (1e6, 5.0)]
)
def test_polling_backs_off_with_idle_time(idle_s, wait_s):
    assert PollPolicy().wait_s(idle_s) == pytest.approx(wait_s)


@pytest.mark.parametrize("bad", [{"fraction": 0.0}, {"min_s": 0.0}, {"min_s": 9.0}])
def test_impossible_poll_policies_are_refused(bad):
    with pytest.raises(ValueError, match="min_s <= max_s"):
        PollPolicy(**bad)
