"""Our device against a real SuperLink with TLS and node authentication: the known hazards."""

import contextlib
import sys
import textwrap
import time

import pytest

from rootlet.errors import ConnectionFailedError, FleetError, NodeStillActiveError
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer, open_envelope
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.records import ArrayRecord, MetricRecord
from rootlet.fleet.transport import RetryPolicy

NODE_UNAVAILABLE = 5


@pytest.fixture(scope="module")
def key(superlink):
    return superlink.register(NodeKey.generate("P-256"))


@pytest.fixture
def connect():
    """Open connections that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(superlink, key):
            certificate = superlink.root_certificate
            return stack.enter_context(
                FleetConnection(
                    superlink.address,
                    root_certificate=certificate,
                    node_key=key,
                    heartbeat_interval_s=10.0,
                )
            )

        yield open_connection


@pytest.fixture
def online(superlink, key, connect):
    """A connection whose node is online, and offline after the test."""
    connection = connect(superlink, key)
    connection.activate()
    yield connection
    connection.deactivate()


def answer_once(connection, timeout_s=60.0):
    """Pull one message and push its reply, call by call."""
    deadline = time.monotonic() + timeout_s
    while (envelope := connection.pull_messages()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    request = open_envelope(envelope, connection.fetch(envelope))
    connection.confirm_message_received(envelope)
    records = {"arrays": ArrayRecord(request.records["arrays"]), "metrics": MetricRecord(seen=1)}
    reply = connection.seal(envelope, Answer(records))
    assert connection.push(reply)
    return reply


def test_rounds_with_two_devices(superlink, key, start_device, adder, read_result):
    other = superlink.register(NodeKey.generate("P-384"))
    devices = [
        start_device(superlink, key, adder(1.0, 3)),
        start_device(superlink, other, adder(5.0, 1)),
    ]
    result = superlink.run_echo_app(nodes=2, rounds=3)
    answers = read_result(result, rounds=3, logs=superlink.logs)
    got = sorted((a["round"], a["w"][0], a["metrics"]["num-examples"]) for a in answers)
    assert got == [(r, r + amount, n) for r in (1, 2, 3) for amount, n in ((1.0, 3), (5.0, 1))]
    for device in devices:
        device.stop()
        assert device.error is None
        assert device.kinds()[-2:] == ["TAKEN", "DEACTIVATED"]
        assert 0 < device.connection.traffic.up < 200_000


def test_leaving_right_after_a_push_loses_the_result(superlink, online, read_result):
    result = superlink.run_echo_app(pause_s=3.0)
    answer_once(online)
    online.deactivate()
    (answer,) = read_result(result, logs=superlink.logs)
    assert answer["error"] == NODE_UNAVAILABLE  # the hazard is real: this is the control


def test_a_session_that_leaves_waits_until_its_result_was_read(
    superlink, key, start_device, read_result
):
    def leave_when_pushed(event):
        if event.kind.name == "PUSHED":
            device.stop_event.set()

    device = start_device(superlink, key, on_event=leave_when_pushed)
    result = superlink.run_echo_app(pause_s=3.0)
    (answer,) = read_result(result, logs=superlink.logs)
    device.stop()
    assert answer["w"] == [2.0] * 4
    assert device.kinds()[-3:] == ["PUSHED", "TAKEN", "DEACTIVATED"]


def test_the_linger_is_bounded(superlink, key, start_device, read_result):
    device = start_device(superlink, key, linger_s=1.0)
    result = superlink.run_echo_app(pause_s=8.0)
    device.wait_for("PUSHED")
    before = time.monotonic()
    device.stop()
    assert time.monotonic() - before < 5.0
    assert device.kinds()[-2:] == ["DROPPED", "DEACTIVATED"]
    (answer,) = read_result(result, logs=superlink.logs)
    assert answer["error"] == NODE_UNAVAILABLE


def test_a_crashed_device_is_locked_out_unless_it_remembers_its_node(superlink, key, connect):
    crashed = connect(superlink, key)
    node_id = crashed.activate()
    crashed.close()  # and never deactivated
    again = connect(superlink, key)
    with pytest.raises(NodeStillActiveError, match="twice the heartbeat interval"):
        again.activate()
    assert again.resume(node_id)  # no wait where the node id is known
    assert again.pull_messages() is None
    assert not connect(superlink, key).resume(node_id ^ 1)
    again.deactivate()


def test_without_its_node_id_a_crashed_device_waits_two_intervals(
    superlink, key, connect, start_device
):
    crashed = connect(superlink, key)
    crashed.activate()
    crashed.close()
    before = time.monotonic()
    device = start_device(superlink, key)
    device.wait_for("ACTIVATED", timeout_s=30.0)
    assert 15.0 < time.monotonic() - before < 26.0
    assert device.kinds()[0] == "WAITING_TO_ACTIVATE"
    device.stop()


CRASHING_DEVICE = """
    import sys, threading, time
    from pathlib import Path
    from rootlet.fleet.connection import FleetConnection
    from rootlet.fleet.keys import NodeKey
    from rootlet.fleet.session import FleetSession

    class Sleeper:
        def answer(self, request, *, should_stop):
            Path(sys.argv[3], "training").touch()
            time.sleep(100)

    address, certificate, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    key = NodeKey.load(folder / "node.key")
    connection = FleetConnection(
        address, root_certificate=certificate, node_key=key, heartbeat_interval_s=10.0
    )
    FleetSession(connection, Sleeper(), state_dir=folder / "state").run(threading.Event())
"""


def test_a_device_killed_while_training_finishes_after_its_restart(
    superlink, start_device, read_result, tmp_path
):
    key = superlink.register(NodeKey.generate())
    key.save(tmp_path / "node.key")
    process = superlink.processes.start(
        *(sys.executable, "-c", textwrap.dedent(CRASHING_DEVICE)),
        *(superlink.address, str(superlink.root_certificate), str(tmp_path)),
    )
    result = superlink.run_echo_app(timeout_s=40.0)
    deadline = time.monotonic() + 40.0
    while not (tmp_path / "training").exists():
        assert time.monotonic() < deadline, superlink.logs()
        time.sleep(0.05)
    process.kill()
    process.wait()
    device = start_device(superlink, key, state_dir=tmp_path / "state")
    device.wait_for("PUSHED", timeout_s=10.0)
    (answer,) = read_result(result, logs=superlink.logs)
    device.stop()
    assert answer["w"] == [2.0] * 4
    assert device.kinds() == [
        *("RESUMED", "RECOVERED", "ANSWERED", "PUSHED", "TAKEN", "DEACTIVATED")
    ]


def test_a_recovered_message_of_a_finished_run_is_dropped(
    superlink, key, start_device, read_result, tmp_path
):
    class Absent:
        def answer(self, request, *, should_stop):
            while not should_stop():
                time.sleep(0.05)

    device = start_device(superlink, key, Absent(), state_dir=tmp_path, linger_s=0.0)
    result = superlink.run_echo_app(timeout_s=1.0)
    device.wait_for("PULLED")
    read_result(result, logs=superlink.logs)
    device.stop()
    time.sleep(2.0)  # the run ends
    again = start_device(superlink, key, state_dir=tmp_path)
    dropped = again.wait_for("DROPPED")
    assert "run" in dropped.detail
    again.stop()


def test_idle_connections_are_closed_by_the_server_and_reopened(superlink, online):
    assert online.pull_messages() is None
    time.sleep(8.0)
    assert online.pull_messages() is None


@pytest.mark.parametrize("offset_s", [7200.0, -7200.0])
def test_a_wrong_clock_is_noticed_and_corrected(superlink, start_device, read_result, offset_s):
    key = superlink.register(NodeKey.generate())
    device = start_device(superlink, key, connect={"now": lambda: time.time() + offset_s})
    event = device.wait_for("CLOCK_CORRECTED")
    assert ("ahead" if offset_s > 0 else "behind") in event.detail
    assert abs(device.connection.clock.offset_s + offset_s) < 3.0
    result = superlink.run_echo_app()
    (answer,) = read_result(result, logs=superlink.logs)
    device.stop()
    assert answer["w"] == [2.0] * 4
    assert device.kinds().count("CLOCK_CORRECTED") == 1


def test_unknown_keys_wrong_authorities_and_plain_http_are_refused(superlink, connect):
    with pytest.raises(NodeStillActiveError, match="not registered"):
        connect(superlink, NodeKey.generate()).activate()
    with (
        FleetConnection(f"https://{superlink.address}") as stranger,
        pytest.raises(FleetError, match="certificate"),
    ):
        stranger.activate()
    with (
        FleetConnection(f"http://{superlink.address}", retry=RetryPolicy(attempts=1)) as plain,
        pytest.raises(ConnectionFailedError),
    ):
        plain.activate()


def test_runs_and_apps_can_be_looked_up(superlink, online, read_result):
    result = superlink.run_echo_app()
    reply = answer_once(online)
    run = online.get_run(reply.run_id)
    assert run.status.status == "running"
    assert len(online.get_fab(reply.run_id, run.fab_hash)) > 1000
    assert read_result(result, logs=superlink.logs)[0]["metrics"] == {"seen": 1}
    assert online.taken(reply)
    assert not online.push(reply)  # again: the server no longer wants it


def test_a_server_without_authentication_registers_the_node(
    open_superlink, start_device, read_result, connect
):
    device = start_device(open_superlink, None)
    result = open_superlink.run_echo_app()
    (answer,) = read_result(result, logs=open_superlink.logs)
    assert answer["w"] == [2.0] * 4
    device.stop()
    assert device.kinds()[-1] == "DEACTIVATED"
    key = NodeKey.generate()
    for _ in range(2):  # a key of one's own stays registered
        connection = connect(open_superlink, key)
        connection.activate()
        connection.deactivate()
