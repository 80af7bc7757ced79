"""A feedback calibrated at the adapter of a round, dropped in while `rootlet serve` runs."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest
import torch

from rootlet import DeviceClient, ParticipationPolicy
from rootlet.data import ArrayData
from rootlet_runtime import Bundle
from rootlet_runtime.feedback_part import write_part
from rootlet_server.compiler.refresh import refresh_part, refreshed_feedback
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.events import EventReader

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)
DEVICES = 2
PATIENCE_S = 120.0


class Server:
    """A `rootlet serve` with many rounds and a feedback file."""

    def __init__(self, bundle, folder, feedback):
        self.state_dir = folder / "state"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rootlet_server.cli", "serve"),
                *("--bundle", bundle.path, "--trusted-key", bundle.public_key_path),
                *("--signing-key", bundle.signing_key_path, "--state-dir", self.state_dir),
                *("--port", "0", "--rounds", "1000", "--min-devices", str(DEVICES)),
                *("--epochs", "1", "--feedback", feedback),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = EventReader(self.state_dir / "events.jsonl")
        self._read = []
        self.replies = []

    def wait_for(self, wanted):
        """The first unread event for which `wanted` is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self._read += self._reader.read()
            while self._read:
                event = self._read.pop(0)
                if event.kind == "reply":
                    self.replies.append(event)
                if wanted(event):
                    return event
            if self.process.poll() is not None:
                pytest.fail(f"the server ended early: {self.process.communicate()}")
            time.sleep(0.02)
        return pytest.fail(f"waited {PATIENCE_S} s in vain; {self.replies[-3:]}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=PATIENCE_S)


def finished(event):
    return event.kind == "round_finished"


def test_a_part_dropped_in_between_two_rounds_reaches_every_device_once(
    mlp_bundle, mlp_built, tmp_path
):
    built, calibration, options = mlp_built
    path = tmp_path / "feedback.part"
    with contextlib.ExitStack() as stack:
        server = Server(mlp_bundle, tmp_path, path)
        stack.callback(server.stop)
        listening = server.wait_for(lambda event: event.kind == "listening")
        devices = []
        for number in range(DEVICES):
            bundle = stack.enter_context(
                Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)
            )
            mine = slice(number, 64, DEVICES)
            device = DeviceClient(
                bundle, tmp_path / f"device{number}", policy=ANY_TIME,
                data=ArrayData.split((mlp_bundle.x[mine], mlp_bundle.y[mine])),
            )  # fmt: skip
            stack.callback(device.close, 1.0)
            device.join(f"http://{listening.address}")
            devices.append(device)
        server.wait_for(finished)
        assert all("feedback_version" not in reply.metrics for reply in server.replies)

        saved = server.state_dir / "federation.sqlite3"
        adapter = RoundCheckpoint.load(saved, manifest_sha256=bundle.manifest_sha256).adapter
        tensors = {name: torch.from_numpy(array) for name, array in adapter.items()}
        fresh = refreshed_feedback(built, tensors, calibration, options)
        part = refresh_part(built, bundle, fresh, version=4, signing_key=mlp_bundle.signing_key)
        write_part(path, part)
        sent = server.wait_for(lambda event: version(event) == 4)
        for _ in range(3):
            server.wait_for(finished)
        by_round = {}
        for reply in server.replies:
            by_round.setdefault(reply.round, []).append(reply)
        before, during, after = (by_round[sent.round + step] for step in (-1, 0, 1))
        assert [version(reply) for reply in during + after] == [4] * 2 * DEVICES
        assert [version(reply) for reply in before] == [None] * DEVICES
        usual = max(reply.metrics["bytes_down"] for reply in before)
        assert all(r.metrics["bytes_down"] >= usual + len(part) for r in during)
        assert all(r.metrics["bytes_down"] < usual + len(part) for r in after)

        write_part(path, part[:-1])
        for _ in range(3):
            assert server.wait_for(finished).devices == DEVICES
        server.stop()
        log = (server.state_dir / "serverapp.log").read_text()
        assert "goes on without a feedback part" in log
        assert "the part's tensors are not those that were signed" in log
    kept = [tmp_path / f"device{number}" for number in range(DEVICES)]
    assert [next(folder.glob("adapter-*/feedback.part")).read_bytes() for folder in kept] == [
        part
    ] * DEVICES


def version(event):
    return event.metrics.get("feedback_version") if event.kind == "reply" else None


def test_a_damaged_part_is_refused_before_anything_listens(mlp_bundle, tmp_path):
    path = tmp_path / "feedback.part"
    path.write_bytes(b"not a part")
    server = Server(mlp_bundle, tmp_path, path)
    out, error = server.process.communicate(timeout=PATIENCE_S)
    assert (server.process.returncode, out, error.count("\n")) == (1, "", 1)
    assert f"{path}: not a feedback part" in error
    assert not (server.state_dir / "events.jsonl").exists()
