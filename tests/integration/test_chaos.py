"""Kill -9 of devices, of the ServerApp, of the SuperLink and of the server, at any moment.

A seeded driver kills two hundred processes of one federation over a real SuperLink, and starts
again what no supervisor starts. In the end every round was finished exactly once, every round was
charged before it was, and every chain of hashes is whole.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rootlet import ledger
from rootlet_runtime import Bundle
from rootlet_server.federation.events import EventReader

KILLS, DEVICES, SEED = 200, 4, 20261126
RECONNECT_S = 30.0
TARGETS = {"device": 0.9, "serverapp": 0.05, "superlink": 0.03, "serve": 0.02}


class Federation:
    """The processes of a federation, each of which may be killed at any time."""

    def __init__(self, bundle, folder):
        self.bundle, self.folder = bundle, folder
        self.state = folder / "state"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.devices = {}
        self.server = None
        self.killed = dict.fromkeys(TARGETS, 0)

    def serve(self, rounds):
        self.server = self.start(
            "serve", "--port", self.port, "--state-dir", self.state, "--rounds", rounds,
            "--signing-key", self.bundle.signing_key_path, "--min-devices", DEVICES - 1,
            "--epochs", 1, "--deadline", 8, "--wait", 120, "--learning-rate", 0.01,
            "--privacy", "device", "--clip-norm", 1, "--noise-multiplier", 50,
            "--epsilon", 1000,
        )  # fmt: skip

    def join(self, number):
        mine = slice(number, 200, DEVICES)
        data = self.folder / f"{number}.npz"
        if not data.exists():
            np.savez(data, x=self.bundle.x[mine], y=self.bundle.y[mine])
        self.devices[number] = self.start(
            "device", "--superlink", f"http://127.0.0.1:{self.port}", "--data", data,
            "--state-dir", self.folder / f"device{number}", "--ignore-conditions",
        )  # fmt: skip

    def start(self, command, *options):
        given = ("--bundle", self.bundle.path, "--trusted-key", self.bundle.public_key_path)
        log = (self.folder / f"{command}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "rootlet_server.cli", command, *map(str, given + options)],
                stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def child(self, module):
        """The process id of one of the server's children."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                if module in command and f"FLWR_HOME={self.state}/" in environment:
                    return int(folder.name)
        return None

    def kill(self, target, rng):
        """One process, and its successor where nobody else starts it."""
        if target == "device":
            number = rng.randrange(DEVICES)
            self.end(self.devices[number])
            self.join(number)
        elif target == "serve":
            self.end(self.server)
            self.serve(10_000)
        else:
            module = f"rootlet_server.federation.{target}_main"
            pid = self.child(module)
            if pid is None:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed[target] += 1
        return True

    @staticmethod
    def end(process):
        process.kill()
        process.wait()

    def stop(self):
        for process in (*self.devices.values(), self.server):
            self.end(process)
        deadline = time.monotonic() + 15
        while self.child("rootlet_server.federation") and time.monotonic() < deadline:
            time.sleep(0.1)

    def finished(self):
        found = EventReader(self.state / "events.jsonl").read()
        return [event.round for event in found if event.kind == "round_finished"]


@pytest.fixture
def federation(mlp_bundle, tmp_path):
    running = Federation(mlp_bundle, tmp_path)
    running.serve(10_000)
    for number in range(DEVICES):
        running.join(number)
    yield running
    running.stop()


def wait_for(condition, timeout_s):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_two_hundred_kills_lose_nothing_and_count_nothing_twice(federation, mlp_bundle):
    rng = random.Random(SEED)  # noqa: S311
    wait_for(federation.finished, 90)
    while sum(federation.killed.values()) < KILLS:
        time.sleep(rng.uniform(0.1, 1.0))
        (target,) = rng.choices(list(TARGETS), list(TARGETS.values()))
        federation.kill(target, rng)
    assert min(federation.killed.values()) >= 1, federation.killed

    # Devices reconnect by themselves, and the server goes on, within the bound that is stated.
    before = len(federation.finished())
    wait_for(lambda: len(federation.finished()) > before, RECONNECT_S + 60)
    last = max(federation.finished())
    federation.end(federation.server)
    federation.serve(last + 2)
    wait_for(lambda: federation.server.poll() is not None, 120)
    assert federation.server.returncode == 0, (federation.folder / "serve.log").read_text()[-3000:]

    entries = ledger.read(federation.state)  # the whole chain is verified
    released = [e.fields["round"] for e in entries if e.kind == "adapter released"]
    charged = [e.fields["round"] for e in entries if e.kind == "round charged"]
    assert released == list(range(1, last + 3))  # each once, in order, none left out
    for number in released:
        assert charged.count(number) >= 1
    spent = [e.fields["epsilon"] for e in entries if e.kind == "round charged"]
    assert spent == sorted(spent)
    assert entries[-1].kind == "bundle published"
    hashes = [e.fields["adapter_sha256"] for e in entries if e.kind == "adapter released"]
    assert len(set(hashes)) == len(hashes)
    (improved,) = federation.state.glob("*.rootlet")
    Bundle.load(improved, trusted_keys=mlp_bundle.trusted_keys).close()
    for number in range(DEVICES):
        assert ledger.verify(federation.folder / f"device{number}").number > 0
    log = (federation.folder / "serve.log").read_text()
    assert not re.search(r"Traceback", log), log[-3000:]


@pytest.mark.chaos
def test_devices_come_back_to_a_superlink_that_was_killed_within_the_stated_bound(federation):
    wait_for(lambda: len(federation.finished()) >= 2, 90)
    reader = EventReader(federation.state / "events.jsonl", from_end=True)
    os.kill(federation.child("rootlet_server.federation.superlink_main"), signal.SIGKILL)
    listening, found = None, []

    def went_on():
        nonlocal listening
        for event in reader.read():
            found.append(event.kind)
            if event.kind == "listening":
                listening = time.monotonic()
        return listening is not None and "round_finished" in found[found.index("listening") :]

    wait_for(went_on, 60)
    assert "restarted" in found
    assert time.monotonic() - listening < RECONNECT_S
