"""The client in a federation: when it takes part, what it answers, and how it ends."""

import threading
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from rootlet import DeviceClient, DeviceConditions, NodeKey, ParticipationPolicy
from rootlet import membership as membership_module
from rootlet.errors import (
    AuthenticationError,
    InsecureAddressError,
    NodeStillActiveError,
    StateError,
)
from rootlet.fleet.envelope import FleetRequest
from rootlet.fleet.events import EventKind, FleetEvent
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet_runtime import Bundle

GOOD = DeviceConditions(charging=True, battery_level=1.0, unmetered=True, idle=True)
WAIT_S = 30.0
ADDRESS = "127.0.0.1:9"  # never reached: the session is a stand-in


class Session:
    """Stands in for `FleetSession`: hands requests to the participant as the test says."""

    opened: ClassVar[list["Session"]]
    failure: ClassVar[Exception | None] = None

    def __init__(self, connection, participant, *, state_dir, cipher):
        self.connection, self.participant, self.state_dir = connection, participant, state_dir
        del cipher
        self.ended = threading.Event()
        self.stop = self.on_event = None
        type(self).opened.append(self)

    def run(self, stop, *, on_event):
        self.stop, self.on_event = stop, on_event
        if (failure := type(self).failure) is not None:
            raise failure
        on_event(FleetEvent(EventKind.ACTIVATED, "as node 1"))
        assert stop.wait(WAIT_S)
        self.connection.close()
        self.ended.set()

    def ask(self, request):
        """One message from its arrival to its push."""
        answer = self.participant.answer(request, should_stop=self.stop.is_set)
        if answer is not None:
            pushed = FleetEvent(EventKind.PUSHED, "", 1, request.message_type)
            self.on_event(pushed)
        return answer


@pytest.fixture
def session(monkeypatch):
    """The class of stand-ins, fresh for each test."""

    class FreshSession(Session):
        opened: ClassVar[list[Session]] = []

    monkeypatch.setattr(membership_module, "FleetSession", FreshSession)
    return FreshSession


class Conditions:
    def __init__(self) -> None:
        self.now = GOOD

    def __call__(self) -> DeviceConditions:
        return self.now

    def unplug(self) -> None:
        self.now = replace(GOOD, charging=False)

    def plug(self) -> None:
        self.now = GOOD


@pytest.fixture
def conditions():
    return Conditions()


@pytest.fixture
def events():
    return []


@pytest.fixture
def policy():
    return ParticipationPolicy()


@pytest.fixture
def client(mlp_bundle, conditions, events, tmp_path, policy):
    with (
        Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle,
        DeviceClient(
            bundle,
            tmp_path / "state",
            policy=policy,
            conditions=conditions,
            recheck_s=0.01,
            on_event=events.append,
        ) as opened,
    ):
        for x, y in zip(mlp_bundle.x[:40], mlp_bundle.y[:40], strict=True):
            opened.observe(x, y)
        yield opened


@pytest.fixture
def requests(mlp_bundle):
    """Makes requests of a server for the bundle."""
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        manifest = bundle.manifest
        of_bundle = {
            "adapter": bundle.initial_adapter(),
            "bundle": manifest.name,
            "bundle_version": manifest.version,
            "manifest_sha256": bundle.manifest_sha256,
            "round": 1,
        }

    def make(kind, **changes):
        cls = TrainRequest if kind == "train" else EvaluateRequest
        # A small step: in an unlucky order of the examples a larger one is refused by the gate.
        training = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3} if kind == "train" else {}
        records = cls(**(of_bundle | training | changes)).to_records()
        return FleetRequest(run_id=1, group_id="1", message_type=kind, records=records, n_bytes=100)

    return make


def eventually(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def online(session, client, number=1):
    eventually(lambda: len(session.opened) == number and client.status.state == "online")
    return session.opened[-1]


def kinds(events):
    return [event.kind for event in events]


def test_a_round_trains_and_the_app_uses_what_was_trained(
    client, session, requests, events, mlp_bundle
):
    before = client.predict(mlp_bundle.x)
    client.join(ADDRESS)
    answer = online(session, client).ask(requests("train"))
    assert answer.error == ""
    assert answer.records["metrics"]["num-examples"] == 32
    assert np.abs(client.predict(mlp_bundle.x) - before).max() > 0
    status = client.status
    assert (status.rounds, status.rounds_today, status.state) == (1, 1, "online")
    trained = next(event for event in events if event.kind == "trained")
    assert trained.round == 1
    assert trained.metrics["num-examples"] == 32


def test_an_evaluation_leaves_the_adapter_alone(client, session, requests, mlp_bundle):
    client.train_locally()
    before = client.predict(mlp_bundle.x)
    client.join(ADDRESS)
    answer = online(session, client).ask(requests("evaluate"))
    assert answer.error == ""
    assert answer.records["metrics"]["num-examples"] == 8
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    assert client.status.rounds == 0


@pytest.mark.parametrize("refused", [{"manifest_sha256": "0" * 64}, {"epochs": 10_000}])
def test_a_refused_request_leaves_the_adapter_alone(client, session, requests, mlp_bundle, refused):
    before = client.predict(mlp_bundle.x)
    client.join(ADDRESS)
    assert online(session, client).ask(requests("train", **refused)).error
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    assert client.status.rounds == 0


def test_while_the_policy_says_no_there_is_no_session(client, session, conditions, events):
    conditions.unplug()
    client.join(ADDRESS)
    eventually(lambda: client.status.state == "waiting")
    time.sleep(0.1)
    assert session.opened == []
    assert client.status.decision.reasons == ("not charging",)
    conditions.plug()
    online(session, client)
    assert kinds(events)[:2] == ["waiting", "activated"]


def test_without_examples_there_is_no_session(client, session, events):
    client.erase()
    client.join(ADDRESS)
    eventually(lambda: client.status.state == "waiting")
    assert client.status.decision.reasons == ("there are no examples yet",)
    assert session.opened == []


def test_an_idle_session_ends_when_the_policy_turns_and_another_begins_later(
    client, session, conditions
):
    client.join(ADDRESS)
    first = online(session, client)
    conditions.unplug()
    assert first.ended.wait(WAIT_S)
    eventually(lambda: client.status.state == "waiting")
    assert not client._learner.trainer._engine._engine._sessions  # its graphs hold no memory
    conditions.plug()
    online(session, client, 2)


def test_a_policy_that_turns_while_training_interrupts_it_and_keeps_the_adapter(
    client, session, conditions, requests, mlp_bundle, monkeypatch, events
):
    client.train_locally()
    before = client.predict(mlp_bundle.x)
    client.join(ADDRESS)
    first = online(session, client)
    step, steps = client._learner.trainer._engine.step, []

    def unplug_at_three(batch, learning_rate):
        steps.append(learning_rate)
        if len(steps) == 3:
            conditions.unplug()
            time.sleep(0.05)  # the last reading of the conditions expires
        return step(batch, learning_rate)

    monkeypatch.setattr(client._learner.trainer._engine, "step", unplug_at_three)
    assert first.ask(requests("train")) is None
    assert len(steps) == 3
    assert first.ended.wait(WAIT_S)
    assert "interrupted" in kinds(events)
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    assert client.status.rounds == 0
    conditions.plug()
    answer = online(session, client, 2).ask(requests("train"))
    assert answer.error == ""
    assert len(steps) == 16  # 2 epochs of 8 batches: the three of before were not repeated


@pytest.mark.parametrize("policy", [ParticipationPolicy(max_rounds_per_day=1)])
def test_after_the_last_round_of_the_day_the_reply_is_pushed_and_the_session_ends(
    client, session, requests
):
    client.join(ADDRESS)
    first = online(session, client)
    answer = first.participant.answer(requests("train"), should_stop=first.stop.is_set)
    assert answer is not None
    assert not first.stop.wait(1.0)  # the reply has yet to be pushed
    first.on_event(FleetEvent(EventKind.PUSHED, "", 1, "train"))
    assert first.stop.is_set()  # before another request can be pulled
    eventually(lambda: client.status.state == "waiting")
    assert client.status.decision.reasons == ("1 rounds today, the most is 1",)


def test_a_request_waits_for_a_local_training(client, session, requests):
    in_step, release = threading.Event(), threading.Event()

    def hang(_progress):
        in_step.set()
        assert release.wait(WAIT_S)

    local = client.train_locally(hang, wait=False)
    assert in_step.wait(WAIT_S)
    client.join(ADDRESS)
    opened, answers = online(session, client), []
    asking = threading.Thread(target=lambda: answers.append(opened.ask(requests("evaluate"))))
    asking.start()
    assert not answers
    release.set()
    asking.join(WAIT_S)
    assert answers[0].error == ""
    assert not local.result(WAIT_S).stopped


def test_a_request_that_waits_for_a_local_training_can_be_left(client, session, requests):
    in_step, release = threading.Event(), threading.Event()

    def hang(_progress):
        in_step.set()
        assert release.wait(WAIT_S)

    client.train_locally(hang, wait=False)
    assert in_step.wait(WAIT_S)
    client.join(ADDRESS)
    opened, answers = online(session, client), []
    asking = threading.Thread(target=lambda: answers.append(opened.ask(requests("train"))))
    asking.start()
    assert client.leave(WAIT_S)
    asking.join(WAIT_S)
    assert answers == [None]
    release.set()


def test_leaving_ends_the_session_and_joining_again_begins_another(client, session, events):
    client.join(ADDRESS)
    first = online(session, client)
    assert client.leave(WAIT_S)
    assert first.ended.is_set()
    assert client.status.state == "idle"
    assert kinds(events)[-1] == "left"
    client.join(ADDRESS)
    online(session, client, 2)


def test_leaving_while_the_policy_says_no_is_quick(client, session, conditions):
    conditions.unplug()
    client.join(ADDRESS)
    eventually(lambda: client.status.state == "waiting")
    assert client.leave(WAIT_S)
    assert session.opened == []


def test_leaving_without_having_joined_is_fine(client):
    assert client.leave(0.0)


def test_joining_twice_is_refused(client, session):
    client.join(ADDRESS)
    with pytest.raises(StateError, match="leave"):
        client.join(ADDRESS)


def test_an_impossible_address_is_refused_in_the_app_s_own_thread(client):
    with pytest.raises(InsecureAddressError):
        client.join("http://example.org:80")
    assert client.status.state == "idle"


def test_a_lasting_refusal_is_told_and_not_raised(client, session, events, caplog):
    session.failure = AuthenticationError("the server refuses this node's signature")
    client.join(ADDRESS)
    eventually(lambda: client.status.state == "failed")
    assert "refuses this node" in client.status.last_error
    assert kinds(events)[-1] == "gave up"
    session.failure = None
    client.join(ADDRESS)  # the app may try again
    online(session, client, 2)


@pytest.mark.parametrize(
    "failure", [NodeStillActiveError("online"), OSError(28, "No space left on device")]
)
def test_a_failure_that_may_pass_is_tried_again(client, session, monkeypatch, events, failure):
    monkeypatch.setattr(membership_module, "RETRY_S", 0.01)
    session.failure = failure
    client.join(ADDRESS)
    eventually(lambda: len(session.opened) > 2)
    session.failure = None
    eventually(lambda: client.status.state == "online")
    assert "failed" in kinds(events)


def test_an_unforeseen_error_is_logged_with_its_place(client, session, caplog):
    session.failure = ZeroDivisionError("division by zero")
    client.join(ADDRESS)
    eventually(lambda: client.status.state == "failed")
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text


def test_an_app_whose_callback_fails_goes_on(mlp_bundle, session, conditions, tmp_path, caplog):
    def fail(_event):
        raise ZeroDivisionError

    with (
        Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle,
        DeviceClient(
            bundle, tmp_path / "other", conditions=conditions, recheck_s=0.01, on_event=fail
        ) as client,
    ):
        client.observe(mlp_bundle.x[0], mlp_bundle.y[0])
        client.join(ADDRESS)
        online(session, client)
    assert "on_event failed" in caplog.text


def test_the_node_keeps_its_key(client, session):
    client.join(ADDRESS)
    kept = online(session, client).connection.node_key.public_pem
    client.leave(WAIT_S)
    client.join(ADDRESS)
    assert online(session, client, 2).connection.node_key.public_pem == kept
    client.leave(WAIT_S)
    own = NodeKey.generate()
    client.join(ADDRESS, node_key=own)
    assert online(session, client, 3).connection.node_key is own


def test_a_full_disk_costs_the_device_the_adapter_and_not_the_server_the_update(
    client, session, requests, mlp_bundle, monkeypatch
):
    from rootlet_runtime.errors import CheckpointError

    def refuse(_folder):
        raise CheckpointError("no space left")

    before = client.predict(mlp_bundle.x)
    client.join(ADDRESS)
    opened = online(session, client)
    monkeypatch.setattr(client._learner.trainer, "save", refuse)
    assert opened.ask(requests("train")).error == ""
    assert "no space left" in client.status.last_error
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
