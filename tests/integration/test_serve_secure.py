"""Secure rounds from the shell: enrolled devices, a real SuperLink, and a server that sees sums."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

from rootlet import DeviceClient, ParticipationPolicy
from rootlet import ledger as device_ledger
from rootlet.data import ArrayData
from rootlet.secagg.policy import SecurePolicy
from rootlet_runtime import Bundle
from rootlet_server.cli import main
from rootlet_server.federation.events import EventReader

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)
DEVICES = 6


def enrol(authority, state_dir, name, capsys):
    """The four commands of `rootlet enrol`, on a device's folder."""
    assert main(["enrol", "request", "--state-dir", str(state_dir)]) == 0
    device = capsys.readouterr().out.split()[-1]
    certificate = state_dir / "device.cert"
    assert (
        main(
            ["enrol", "sign", "--authority", f"{authority}.pem", "--device", device]
            + ["--name", name, "--out", str(certificate)]
        )
        == 0
    )
    assert (
        main(
            ["enrol", "install", "--state-dir", str(state_dir), "--certificate", str(certificate)]
            + ["--authority", f"{authority}.pub.pem"]
        )
        == 0
    )


@pytest.fixture
def authority(tmp_path, capsys):
    stem = tmp_path / "ca"
    assert main(["enrol", "authority", str(stem)]) == 0
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
        mine = slice(number, None, DEVICES)
        device = DeviceClient(
            bundle,
            self.folder / f"device{number}",
            policy=policy,
            data=ArrayData.split((self.bundle.x[mine], self.bundle.y[mine])),
            on_event=self.events.append,
        )
        self.stack.callback(device.close, 1.0)
        return device


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
        out, error = process.communicate(timeout=120)
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
        out, error = process.communicate(timeout=120)
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
        fleet = Fleet(mlp_bundle, tmp_path, stack)
        for number in (0, DEVICES - 1):
            fleet.open(number).join(address)
        process.communicate(timeout=120)
        found = list(EventReader(events).read())
        refused = [event.reason for event in found if event.kind == "reply_refused"]
        assert any("by secure aggregation only" in reason for reason in refused)
