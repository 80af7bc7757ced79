"""Secure rounds from the shell: enrolled devices, a real SuperLink, and a server that sees sums."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from rootlet import DeviceClient, ParticipationPolicy
from rootlet import ledger as device_ledger
from rootlet.data import ArrayData
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.session import FleetSession
from rootlet.secagg.enrolment import Certificate, EnrolmentFolder
from rootlet.secagg.messages import SECURE, StageMessage
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.policy import SecurePolicy
from rootlet.secagg.update import flat
from rootlet_runtime import Bundle
from rootlet_runtime.signing import load_private_key
from rootlet_server.cli import main
from rootlet_server.federation.events import EventReader

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)
BIN = Path(sys.executable).parent
DEVICES, HUNDRED = 6, 100


def run(*arguments):
    assert main(list(map(str, arguments))) == 0


def enrol(authority, state_dir, name, capsys):
    """The commands of `rootlet enrol`, on a device's folder."""
    run("enrol", "request", "--state-dir", state_dir)
    device, certificate = capsys.readouterr().out.split()[-1], state_dir / "device.cert"
    key, public = f"{authority}.pem", f"{authority}.pub.pem"
    wanted = ("--device", device, "--name", name, "--out", certificate)
    run("enrol", "sign", "--authority", key, *wanted)
    run("enrol", "install", "--state-dir", state_dir, "--certificate", certificate,
        "--authority", public)  # fmt: skip


@pytest.fixture
def authority(tmp_path, capsys):
    stem = tmp_path / "ca"
    run("enrol", "authority", stem)
    return stem


class Fleet:
    """Devices of one bundle that join a server."""

    def __init__(self, bundle, folder, stack):
        self.bundle, self.folder, self.stack = bundle, folder, stack
        self.events = []

    def open(self, number, policy=ANY_TIME):
        bundle = self.stack.enter_context(
            Bundle.load(self.bundle.path, trusted_keys=self.bundle.trusted_keys)
        )
        mine = slice(number % DEVICES, None, DEVICES)
        device = DeviceClient(
            bundle,
            self.folder / f"device{number}",
            policy=policy,
            data=ArrayData.split((self.bundle.x[mine], self.bundle.y[mine])),
            on_event=self.events.append,
        )
        self.stack.callback(device.close, 1.0)
        return device


def supernode(bundle, folder, number, address):
    """A stock Flower SuperNode, as its owner starts one."""
    data = folder / f"node{number}.npz"
    np.savez(data, x=bundle.x[number::DEVICES], y=bundle.y[number::DEVICES])
    config = {
        "bundle": bundle.path,
        "trusted-key": bundle.public_key_path,
        "data": data,
        "enrolment": folder / f"device{number}" / "enrolment",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return subprocess.Popen(
        [
            str(BIN / "flower-supernode"),
            *("--insecure", "--superlink", address.removeprefix("http://"), "--port", str(port)),
            *("--node-config", " ".join(f'{name}="{value}"' for name, value in config.items())),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        },
        start_new_session=True,
    )


def ended(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def served(bundle, folder, *options):
    """`rootlet serve`, and the address at which it listens."""
    state = folder / "state"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "rootlet_server.cli", "serve"),
            *("--bundle", bundle.path, "--trusted-key", bundle.public_key_path),
            *("--signing-key", bundle.signing_key_path, "--state-dir", state, "--port", "0"),
            *("--epochs", "2", "--wait", "60", "--deadline", "60", "--learning-rate", "0.02"),
            *map(str, options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("devices join at"):
            return process, f"http://{line.split()[3]}", state / "events.jsonl"
    return pytest.fail(process.communicate()[1])


@pytest.mark.parametrize("groups", [False, True])
def test_enrolled_devices_improve_a_bundle_whose_server_sees_sums_alone(
    mlp_bundle, tmp_path, authority, capsys, groups
):
    data = tmp_path / "held.npz"
    np.savez(data, x=mlp_bundle.x[300:], y=mlp_bundle.y[300:])
    options = ("--group-size", 3, "--min-live", 3) if groups else ("--min-live", 5)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(mlp_bundle, tmp_path, stack)
        for number in range(DEVICES):
            enrol(authority, tmp_path / f"device{number}", f"device {number}", capsys)
        process, address, events = served(
            mlp_bundle, tmp_path, "--rounds", 2, "--min-devices", DEVICES, "--evaluate-data", data,
            "--enrolment-authority", f"{authority}.pub.pem", *options,
        )  # fmt: skip
        stack.callback(process.kill)
        for number in range(DEVICES):
            fleet.open(number).join(address, secure=SecurePolicy(min_live=3 if groups else 5))
        _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    found = list(EventReader(events).read())
    rounds = [event for event in found if event.kind == "round_finished"]
    assert [(event.round, event.devices) for event in rounds] == [(1, DEVICES), (2, DEVICES)]
    assert "secure aggregation" in rounds[0].protection
    assert rounds[0].means == {}
    assert rounds[1].central["accuracy"] > rounds[0].central["accuracy"]
    assert not [event for event in found if event.kind == "reply"]  # nothing in clear
    entries = device_ledger.read(tmp_path / "device0")
    stages = [entry.fields["stage"] for entry in entries]
    assert stages == ["advertise", "share", "upload", "confirm", "unmask"] * 2
    uploaded = [entry.fields for entry in entries if entry.kind == "update"]
    assert all(fields["protection"] == "secure aggregation" for fields in uploaded)
    assert all(fields["metrics"] == ["bytes_up"] for fields in uploaded)
    assert json.loads(events.read_text().splitlines()[0])["kind"] == "listening"


@pytest.mark.slow
def test_a_device_that_is_not_enrolled_is_left_out_and_an_enrolled_one_sends_nothing_in_clear(
    mlp_bundle, tmp_path, authority, capsys
):
    with contextlib.ExitStack() as stack:
        fleet = Fleet(mlp_bundle, tmp_path, stack)
        for number in range(DEVICES - 1):
            enrol(authority, tmp_path / f"device{number}", f"device {number}", capsys)
        process, address, events = served(
            mlp_bundle, tmp_path, "--rounds", 1, "--min-devices", DEVICES, "--min-live", 5,
            "--enrolment-authority", f"{authority}.pub.pem",
        )  # fmt: skip
        stack.callback(process.kill)
        for number in range(DEVICES):
            fleet.open(number).join(address)
        _, error = process.communicate(timeout=120)
        assert (process.returncode, error) == (0, "")
        found = list(EventReader(events).read())
        refused = [event for event in found if event.kind == "reply_refused"]
        assert [(event.phase, "not enrolled" in event.reason) for event in refused] == [
            ("secure advertise", True)
        ]
        assert [e.devices for e in found if e.kind == "round_finished"] == [DEVICES - 1]

    with contextlib.ExitStack() as stack:
        again = tmp_path / "clear"
        again.mkdir()
        process, address, events = served(mlp_bundle, again, "--rounds", 1, "--min-devices", 2)
        stack.callback(process.kill)
        # The clients of before may still linger for the first server: these have folders of theirs.
        shutil.copytree(tmp_path / "device0" / "enrolment", again / "device0" / "enrolment")
        fleet = Fleet(mlp_bundle, again, stack)
        for number in (0, DEVICES - 1):
            fleet.open(number).join(address)
        process.communicate(timeout=120)
        found = list(EventReader(events).read())
        refused = [event.reason for event in found if event.kind == "reply_refused"]
        assert any("by secure aggregation only" in reason for reason in refused)


@pytest.mark.slow
def test_devices_add_the_noise_themselves_and_the_budget_ends_the_run(
    mlp_bundle, tmp_path, authority, capsys
):
    data = tmp_path / "held.npz"
    np.savez(data, x=mlp_bundle.x[300:], y=mlp_bundle.y[300:])
    with contextlib.ExitStack() as stack:
        fleet = Fleet(mlp_bundle, tmp_path, stack)
        for number in range(DEVICES):
            enrol(authority, tmp_path / f"device{number}", f"device {number}", capsys)
        process, address, events = served(
            mlp_bundle, tmp_path, "--rounds", 9, "--min-devices", DEVICES, "--min-live", 5,
            "--enrolment-authority", f"{authority}.pub.pem", "--evaluate-data", data,
            "--privacy", "device", "--clip-norm", 1, "--noise-multiplier", 2, "--epsilon", 4,
        )  # fmt: skip
        stack.callback(process.kill)
        for number in range(DEVICES):
            fleet.open(number).join(address)
        out, error = process.communicate(timeout=150)
    assert (process.returncode, error) == (0, "")
    assert "above the budget of 4" in out
    found = list(EventReader(events).read())
    rounds = [event for event in found if event.kind == "round_finished"]
    assert 2 <= len(rounds) < 9
    assert re.search(r"epsilon [\d.]+ at delta 1e-05 \(per device", rounds[-1].protection)
    assert "secure aggregation" in rounds[-1].protection
    server = device_ledger.read(tmp_path / "state")
    charged = [entry.fields["epsilon"] for entry in server if entry.kind == "round charged"]
    assert len(charged) == len(rounds)
    assert charged[-1] <= 4 < charged[-1] * 2
    assert server[-1].kind == "bundle published"
    own = [entry.fields for entry in device_ledger.read(tmp_path / "device0")]
    uploads = [fields for fields in own if fields["stage"] == "upload"]
    assert [fields["protection"] for fields in uploads] == (
        ["secure aggregation, differential privacy"] * len(rounds)
    )
    assert charged[-1] <= uploads[-1]["epsilon"] < 1.3 * charged[-1]


@pytest.mark.chaos
def test_a_stock_supernode_takes_part_in_a_secure_round(mlp_bundle, tmp_path, authority, capsys):
    with contextlib.ExitStack() as stack:
        fleet = Fleet(mlp_bundle, tmp_path, stack)
        for number in range(DEVICES):
            enrol(authority, tmp_path / f"device{number}", f"device {number}", capsys)
        process, address, events = served(
            mlp_bundle, tmp_path, "--rounds", 1, "--min-devices", DEVICES, "--min-live", 5,
            "--enrolment-authority", f"{authority}.pub.pem",
        )  # fmt: skip
        stack.callback(process.kill)
        stack.callback(ended, supernode(mlp_bundle, tmp_path, DEVICES - 1, address))
        for number in range(DEVICES - 1):
            fleet.open(number).join(address)
        _, error = process.communicate(timeout=200)
        assert (process.returncode, error) == (0, "")
        found = list(EventReader(events).read())
        assert not [event for event in found if event.kind == "reply_refused"]
        assert [e.devices for e in found if e.kind == "round_finished"] == [DEVICES]


class Adding:
    """A participant whose every update is the same vector; it learns nothing."""

    def __init__(self, secure, update):
        self.secure, self.update = secure, update

    def answer(self, request, *, should_stop):
        stage = StageMessage.request({SECURE: request.records[SECURE]})
        if stage.stage == "upload":
            return self.secure.upload(stage, self.update)
        return self.secure.answer(stage)


@pytest.mark.chaos
def test_a_hundred_connections_complete_a_secure_round_without_an_error(
    mlp_bundle, tmp_path, authority
):
    ca, stop = load_private_key(f"{authority}.pem"), threading.Event()
    expires = datetime.now(UTC) + timedelta(days=1)
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(
            Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)
        )
        initial = bundle.initial_adapter()
        updates = np.random.default_rng(0).uniform(-1, 1, (HUNDRED, len(flat(initial))))
        process, address, events = served(
            mlp_bundle, tmp_path, "--rounds", 1, "--min-devices", HUNDRED,
            "--enrolment-authority", f"{authority}.pub.pem",
        )  # fmt: skip
        stack.callback(process.kill)
        threads = []
        for number, update in enumerate(updates.astype(np.float32)):
            folder = EnrolmentFolder(tmp_path / f"device{number}")
            device = folder.device_id()
            signed = Certificate.issue(ca, device, name=f"device {number}", expires=expires)
            folder.install(signed.raw, ca.public_key())
            secure = SecureParticipation.open(folder.path, SecurePolicy(), bundle)
            connection = FleetConnection(address, node_key=NodeKey.generate())
            session = FleetSession(connection, Adding(secure, update), linger_s=1.0)
            threads.append(threading.Thread(target=session.run, args=(stop,), daemon=True))
            threads[-1].start()
        _, error = process.communicate(timeout=250)
        stop.set()
        for thread in threads:
            thread.join(10.0)
    assert (process.returncode, error) == (0, "")
    found = list(EventReader(events).read())
    assert not [event for event in found if event.kind == "reply_refused"]
    assert [e.devices for e in found if e.kind == "round_finished"] == [HUNDRED]
    improved = next((tmp_path / "state").glob("*.rootlet"))
    with Bundle.load(improved, trusted_keys=mlp_bundle.trusted_keys) as after:
        moved = flat(after.initial_adapter()) - flat(initial)
    # The mean of a hundred roundings, each by less than one unit of 4 / 32,767, and one float32.
    np.testing.assert_allclose(moved, updates.mean(0), atol=4 / 32_767, rtol=0)
