"""`rootlet serve` from the shell, with real devices, over TLS with node authentication."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from rootlet import DeviceClient, ParticipationPolicy
from rootlet.data import ArrayData
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer, SealedReply
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.messages import MESSAGES
from rootlet.fleet.objects import ObjectSet
from rootlet_runtime import Bundle
from rootlet_server.cli import main
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.control import ControlLink
from rootlet_server.federation.events import EventReader
from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)
START_S, END_S = 60.0, 60.0
DEVICES = 3

# Written to a `sitecustomize.py` that every process of the server loads: each name that it looks
# up, one a line.
TRAP = """
import os, socket
_look_up = socket.getaddrinfo
def look_up(host, *arguments, **options):
    with open(os.environ["LOOKED_UP"], "a") as file:
        file.write(f"{host}\\n")
    return _look_up(host, *arguments, **options)
socket.getaddrinfo = look_up
"""


class Server:
    """A `rootlet serve` process."""

    def __init__(self, bundle, folder, *options):
        self.state_dir = folder / "state"
        self.looked_up = folder / "looked_up"
        trap = folder / "trap"
        trap.mkdir(exist_ok=True)
        (trap / "sitecustomize.py").write_text(TRAP)
        paths = [str(trap), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rootlet_server.cli", "serve"),
                *("--bundle", bundle.path, "--trusted-key", bundle.public_key_path),
                *("--signing-key", bundle.signing_key_path, "--state-dir", self.state_dir),
                *("--port", "0", "--epochs", "2", "--wait", "60", "--deadline", "60"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(paths), "LOOKED_UP": str(self.looked_up)},
        )
        self._reader = EventReader(self.state_dir / "events.jsonl", from_end=True)
        self.events = []

    def wait_for(self, kind, timeout_s=START_S):
        """The next event of a kind."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self._reader.read():
                self.events.append(event)
                if event.kind == kind:
                    return event
            if self.process.poll() is not None:
                pytest.fail(f"the server ended early: {self.process.communicate()}")
            time.sleep(0.02)
        return pytest.fail(f"no {kind} in {timeout_s} s: {self.events}")

    def finish(self):
        """Exit code, standard output and error."""
        out, error = self.process.communicate(timeout=END_S)
        self.events += self._reader.read()
        return self.process.returncode, out, error

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def serve(mlp_bundle, tmp_path):
    """`serve(*options)`: a server that is gone after the test."""
    with contextlib.ExitStack() as stack:

        def start(*options):
            server = Server(mlp_bundle, tmp_path, *map(str, options))
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def joined(mlp_bundle, tmp_path):
    """`joined(address, count, ...)`: devices that take part until the end of the test."""
    with contextlib.ExitStack() as stack:

        def join(address, count, root_certificate=None, keys=()):
            devices = []
            for number in range(count):
                bundle = stack.enter_context(
                    Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)
                )
                mine = slice(number, None, count)
                device = DeviceClient(
                    bundle,
                    tmp_path / f"device{len(list(tmp_path.iterdir()))}",
                    policy=ANY_TIME,
                    data=ArrayData.split((mlp_bundle.x[mine], mlp_bundle.y[mine])),
                )
                stack.callback(device.close, 1.0)
                device.join(address, root_certificate, keys[number] if keys else None)
                devices.append(device)
            return devices

        yield join


def processes_of(state_dir):
    """Processes whose command line names the state directory's parent, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            if f"FLWR_HOME={state_dir}" in environment:
                found[int(folder.name)] = command
    return found


def wait_until(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_devices_improve_a_bundle_over_tls_with_node_authentication(
    mlp_bundle, serve, joined, tmp_path
):
    keys = [NodeKey.generate(curve) for curve in ("P-256", "P-384", "P-256")]
    (tmp_path / "keys").mkdir()
    for number, key in enumerate(keys):
        (tmp_path / "keys" / f"{number}.pub").write_bytes(key.public_pem)
    data = tmp_path / "held.npz"
    np.savez(data, x=mlp_bundle.x[300:], y=mlp_bundle.y[300:])

    server = serve(
        *("--rounds", 3, "--min-devices", DEVICES, "--tls", "auto", "--host", "127.0.0.2"),
        *("--node-keys", tmp_path / "keys", "--out", tmp_path / "improved.rootlet"),
        *("--learning-rate", "0.02", "--evaluate-data", data),
    )
    listening = server.wait_for("listening")
    assert listening.node_auth
    certificate = Path(listening.root_certificate)
    joined(listening.address, DEVICES, certificate, keys)
    (stranger,) = joined(listening.address, 1, certificate, [NodeKey.generate()])
    returncode, out, error = server.finish()

    assert (returncode, error) == (0, "")
    assert "round 3: 3/3 devices" in out
    rounds = [event for event in server.events if event.kind == "round_finished"]
    assert [(event.round, event.devices, event.asked) for event in rounds] == [
        (number, DEVICES, DEVICES) for number in (1, 2, 3)
    ]
    assert all(event.bytes_down > 0 and event.bytes_up > 0 for event in rounds)
    evaluated = next(event for event in server.events if event.kind == "evaluated")
    assert evaluated.devices == DEVICES
    gain = evaluated.means["accuracy_received"] - rounds[0].means["accuracy_received"]
    assert gain > 0.3  # 0.67 to 0.69 were seen
    assert evaluated.central["accuracy"] == rounds[-1].central["accuracy"]
    assert stranger.status.rounds == 0

    with (
        Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as old,
        Bundle.load(
            tmp_path / "improved.rootlet", trusted_keys=mlp_bundle.trusted_keys, minimum_version=2
        ) as new,
    ):
        assert (new.manifest.name, new.manifest.version) == (old.manifest.name, 2)
        before, after = old.initial_adapter(), new.initial_adapter()
        assert before.keys() == after.keys()
        assert any(np.abs(after[name] - before[name]).max() > 0 for name in before)

    looked_up = set(server.looked_up.read_text().split())
    assert looked_up <= {"127.0.0.1", "127.0.0.2", "localhost"}
    assert wait_until(lambda: not processes_of(server.state_dir), 5.0)
    saved = server.state_dir / "federation.sqlite3"
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as old:
        assert not RoundCheckpoint.exists(saved, manifest_sha256=old.manifest_sha256)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_server_leaves_no_process_and_loses_no_finished_round(serve, joined, how):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    server = serve("--rounds", 500, "--min-devices", 2, "--metrics-port", port)
    devices = joined(f"http://{server.wait_for('listening').address}", 2)
    server.wait_for("round_finished")
    assert len(processes_of(server.state_dir)) == 2
    assert wait_until(lambda: b"\nrootlet_round_devices_answered 2.0\n" in scraped(port), 10.0)
    assert main(["status", "--state-dir", str(server.state_dir)]) == 0
    server.process.send_signal(how)
    returncode, _, error = server.finish()
    assert main(["status", "--state-dir", str(server.state_dir)]) == 1

    assert returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert ("the same command goes on" in error) == (how != signal.SIGKILL)
    assert wait_until(lambda: not processes_of(server.state_dir), 10.0)
    for device in devices:
        device.leave(0.0)

    finished = [event.round for event in server.events if event.kind == "round_finished"][-1]
    if how == signal.SIGKILL:
        return
    again = serve("--rounds", finished + 1, "--min-devices", 2)
    joined(f"http://{again.wait_for('listening').address}", 2)
    returncode, _, error = again.finish()
    assert (returncode, error) == (0, "")
    started = [event.round for event in again.events if event.kind == "round_started"]
    assert started in ([finished + 1], [])  # the stopped server may have just finished that round


def scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read()


def nonsense(connection, envelope):
    """A reply whose content is one object that is not JSON."""
    reply = connection.seal(envelope, Answer({}, "a placeholder"))
    metadata = MESSAGES["Metadata"]()
    metadata.CopyFrom(reply.message.metadata)
    metadata.message_id = ""
    objects = ObjectSet()
    content = objects.add("RecordDict", [], b"nonsense")
    body = MESSAGES["Message"](metadata=metadata).SerializeToString(deterministic=True)
    metadata.message_id = objects.add("Message", [content], body)
    message = MESSAGES["Message"](metadata=metadata)
    message.content.SetInParent()
    return SealedReply(message, objects.tree(metadata.message_id), objects.contents)


def test_a_device_that_answers_nonsense_is_left_out(serve, joined):
    server = serve("--rounds", 1, "--min-devices", 2)
    address = f"http://{server.wait_for('listening').address}"
    with FleetConnection(address) as hostile:
        hostile.activate()
        joined(address, 1)
        for _ in ("train", "evaluate"):
            envelope = wait_until(hostile.pull_messages, START_S)
            hostile.fetch(envelope)
            assert hostile.push(nonsense(hostile, envelope))
        returncode, _, error = server.finish()
    assert (returncode, error) == (0, "")
    refused = [event for event in server.events if event.kind == "reply_refused"]
    assert [event.phase for event in refused] == ["train", "evaluate"]


def test_a_second_server_on_the_same_state_directory_is_refused(serve):
    first = serve("--rounds", 1)
    first.wait_for("listening")
    returncode, _, error = serve("--rounds", 1).finish()
    assert returncode == 1
    assert f"in use by process {first.process.pid}" in error
    assert first.process.poll() is None


def test_a_state_directory_that_cannot_be_made_is_told_in_one_line(serve, tmp_path):
    (tmp_path / "state").write_text("not a directory")
    returncode, _, error = serve().finish()
    assert (returncode, error.count("\n")) == (1, 1)
    assert "cannot keep state" in error


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # flwr's, on building an app
def test_a_run_that_somebody_else_submitted_is_not_run(tmp_path):
    with SuperLink(SuperLinkConfig(state_dir=tmp_path)) as link:
        somebody, server = (
            ControlLink(link.address, root_certificate=None, task_secret=link.task_secret)
            for _ in range(2)
        )
        with somebody, server:
            assert somebody.submit(tmp_path / "theirs") != server.submit(tmp_path / "ours")
            assert server.take_task() is None  # theirs, the first in line
            assert server.take_task()


def test_a_public_address_is_refused_before_anything_listens(serve):
    server = serve("--host", "0.0.0.0")  # noqa: S104
    returncode, out, error = server.finish()
    assert (returncode, out) == (1, "")
    assert re.fullmatch(r"rootlet: 0\.0\.0\.0 is reachable .* listen on 127\.0\.0\.1\n", error)
    assert not server.state_dir.exists()


def test_events_are_plain_json_lines(serve, tmp_path):
    server = serve("--rounds", 1, "--wait", "0.1", "--events", tmp_path / "mine.jsonl")
    returncode, _, error = server.finish()
    assert returncode == 1
    assert "0 devices are online after 0.1 s" in error
    assert error.count("\n") == 1
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["listening", "waiting", "run_finished"]
