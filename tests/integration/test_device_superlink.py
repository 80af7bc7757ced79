"""The client and `rootlet device` against a real SuperLink with TLS and node authentication."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rootlet import (
    DeviceClient,
    DeviceConditions,
    NodeKey,
    ParticipationPolicy,
    TrainConfig,
    ledger,
)
from rootlet.continual import ContinualConfig
from rootlet_runtime import Bundle

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, battery_above=0.0)
WAIT_S = 60.0
EPOCHS, BATCH_SIZE, LEARNING_RATE = 3, 8, 0.05


@pytest.fixture(scope="module")
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as loaded:
        yield loaded


@pytest.fixture
def start_round(superlink, bundle, tmp_path):
    """Submits one round of Flower's own FedAvg; returns the file of its outcome."""

    def start(nodes=1, **changes):
        initial = tmp_path / "initial.npz"
        np.savez(initial, **bundle.initial_adapter())
        manifest = bundle.manifest
        settings = {
            "protocol": 1,
            "bundle": manifest.name,
            "bundle_version": manifest.version,
            "manifest_sha256": bundle.manifest_sha256,
            "round": 1,
            "epochs": EPOCHS,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
        }
        initial.with_suffix(".json").write_text(json.dumps(settings | changes))
        return superlink.run_echo_app(mode="fedavg", nodes=nodes, initial=str(initial))

    return start


@pytest.fixture
def outcome(superlink):
    def read(path):
        eventually(path.exists, superlink.logs)
        with np.load(path) as arrays:
            return dict(arrays)

    return read


def eventually(condition, logs=str):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, logs()
        time.sleep(0.02)


@pytest.fixture
def client(superlink, bundle, mlp_bundle, tmp_path):
    """A client that has examples and a registered key, and conditions that a test may change."""
    conditions = [DeviceConditions()]
    with DeviceClient(
        bundle,
        tmp_path / "state",
        policy=ParticipationPolicy(charging=False, unmetered=False, battery_above=0.0, idle=True),
        conditions=lambda: conditions[0],
        train=TrainConfig(continual=ContinualConfig(gate=None)),  # what was sent is what is kept
        recheck_s=0.05,
    ) as opened:
        for x, y in zip(mlp_bundle.x[:60], mlp_bundle.y[:60], strict=True):
            opened.observe(x, y)
        opened.conditions = conditions
        opened.state_dir = tmp_path / "state"
        opened.key = superlink.register(NodeKey.generate())
        yield opened


def allow(client):
    client.conditions[0] = DeviceConditions(idle=True)


def forbid(client):
    client.conditions[0] = DeviceConditions(idle=False)


def test_a_round_trains_the_client_whose_policy_allows_it(
    client, superlink, start_round, outcome, mlp_bundle
):
    before = client.predict(mlp_bundle.x)
    forbid(client)
    client.join(superlink.address, superlink.root_certificate, client.key)
    path = start_round()
    eventually(lambda: client.status.state == "waiting")
    assert client.status.bytes_up == 0  # not even an activation
    allow(client)
    arrays = outcome(path)
    assert client.leave()
    assert arrays["weight:0"] == 48  # one example of five is held out
    np.testing.assert_array_equal(
        arrays["reply0:head.bias"], client._learner.trainer.adapter["head.bias"]
    )
    assert np.abs(client.predict(mlp_bundle.x) - before).max() > 0
    status = client.status
    assert (status.state, status.rounds, status.last_error) == ("idle", 1, "")
    assert status.bytes_up > 0
    ledger.verify(client.state_dir)
    told = [entry.fields for entry in ledger.read(client.state_dir) if entry.kind == "update"]
    assert [(each["server"], each["protection"]) for each in told] == [(superlink.address, "none")]
    reply = {n.partition(":")[2]: each for n, each in arrays.items() if n.startswith("reply0:")}
    assert set(told[0]["tensors"]) == set(reply)
    assert sum(each.nbytes for each in reply.values()) < told[0]["bytes"] < status.bytes_up


def test_what_the_ledger_cannot_hold_does_not_leave(client, superlink, start_round):
    allow(client)
    client.join(superlink.address, superlink.root_certificate, client.key)
    (client.state_dir / ledger.FILE).mkdir()
    start_round()
    eventually(lambda: client.status.last_error)
    assert client.status.last_error.startswith("nothing was sent: the ledger in")
    client.leave()


def test_a_policy_that_turns_takes_the_device_offline_with_the_adapter_from_before(
    client, superlink, start_round, monkeypatch, mlp_bundle
):
    before = client.predict(mlp_bundle.x)
    engine, states = client._learner.trainer._engine, []
    step = engine.step

    def forbid_at_five(batch, learning_rate):
        states.append(client.status.state)
        if len(states) == 5:
            forbid(client)
            time.sleep(0.1)  # the last reading of the conditions expires
        return step(batch, learning_rate)

    monkeypatch.setattr(engine, "step", forbid_at_five)
    allow(client)
    client.join(superlink.address, superlink.root_certificate, client.key)
    start_round()
    eventually(lambda: client.status.state == "waiting", superlink.logs)
    assert states == ["working"] * 5
    assert client.status.rounds == 0
    np.testing.assert_array_equal(client.predict(mlp_bundle.x), before)
    allow(client)
    eventually(lambda: client.status.state == "online", superlink.logs)
    assert client.leave()


def command(superlink, mlp_bundle, folder, *options):
    return [
        *(sys.executable, "-m", "rootlet_server.cli", "device"),
        *("--superlink", superlink.address),
        *("--root-certificate", str(superlink.root_certificate)),
        *("--bundle", str(mlp_bundle.path), "--trusted-key", str(mlp_bundle.public_key_path)),
        *("--data", str(folder / "data.npz"), "--state-dir", str(folder / "state")),
        *("--node-key", str(folder / "node.key"), "--events", str(folder / "events.jsonl")),
        "--ignore-conditions",
        *options,
    ]


@pytest.fixture
def device_folder(superlink, mlp_bundle, tmp_path):
    superlink.register(NodeKey.load_or_generate(tmp_path / "node.key"))
    np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:60], y=mlp_bundle.y[:60])
    return tmp_path


def events(folder: Path):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def kinds(folder):
    return [event["kind"] for event in events(folder)]


def test_the_command_trains_a_round_and_leaves_on_interrupt(
    superlink, mlp_bundle, device_folder, start_round, outcome
):
    process = subprocess.Popen(
        command(superlink, mlp_bundle, device_folder), stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            path = start_round()
            eventually(lambda: "pushed" in kinds(device_folder), superlink.logs)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert outcome(path)["weight:0"] == 48
    lines = printed.splitlines()
    assert lines[0] == "device: bundle digits version 1, 48 examples to learn from, 12 held out"
    assert any(line.startswith("round 1 trained: accuracy ") for line in lines)
    assert lines[-1].startswith("left: 1 rounds trained, ")
    assert kinds(device_folder)[-3:] == ["taken", "deactivated", "left"]


def test_an_unregistered_command_waits_and_says_so(superlink, mlp_bundle, tmp_path):
    np.savez(tmp_path / "data.npz", x=mlp_bundle.x[:60], y=mlp_bundle.y[:60])
    process = subprocess.Popen(
        command(superlink, mlp_bundle, tmp_path, "--generate-node-key"),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            eventually(lambda: "waiting to activate" in kinds(tmp_path), superlink.logs)
            process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "for the folder of its --node-keys" in printed
