"""Privacy by example from the shell: devices that train by DP-SGD and tell nothing but adapters."""

import contextlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rootlet import DeviceClient, ParticipationPolicy
from rootlet import ledger as device_ledger
from rootlet.data import ArrayData
from rootlet_runtime import Bundle
from rootlet_server.compiler import CompileConfig, PrivacyConfig, compile_bundle
from rootlet_server.federation.events import EventReader

ANY_TIME = ParticipationPolicy(charging=False, unmetered=False, idle=False)


@pytest.fixture
def private_bundle(mlp_bundle, tmp_path):
    """A small model with the graph that a private step needs."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    path = tmp_path / "private.rootlet"
    compile_bundle(
        model,
        calibration_x=torch.from_numpy(mlp_bundle.x[:64]),
        config=CompileConfig(privacy=PrivacyConfig()),
        name="digits",
        version=1,
        signing_key=mlp_bundle.signing_key,
        out=path,
    )
    return replace(mlp_bundle, path=path)


@pytest.mark.slow
def test_by_example_nothing_but_adapters_leaves_and_both_ledgers_say_what_was_spent(
    private_bundle, tmp_path
):
    state = tmp_path / "state"
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rootlet_server.cli", "serve"),
                *("--bundle", private_bundle.path, "--port", "0", "--state-dir", state),
                *("--trusted-key", private_bundle.public_key_path),
                *("--signing-key", private_bundle.signing_key_path),
                *("--rounds", "2", "--min-devices", "3", "--batch-size", "32", "--epochs", "1"),
                *("--privacy", "example", "--clip-norm", "1", "--noise-multiplier", "1"),
                *("--sample-rate", "0.25", "--epsilon", "20", "--wait", "60"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.kill)
        lines = (line.split() for line in process.stdout if line.startswith("devices join at"))
        address = f"http://{next(lines)[3]}"
        for number in range(3):
            bundle = stack.enter_context(
                Bundle.load(private_bundle.path, trusted_keys=private_bundle.trusted_keys)
            )
            mine = slice(number, None, 3)
            device = stack.enter_context(
                DeviceClient(
                    bundle,
                    tmp_path / f"device{number}",
                    policy=ANY_TIME,
                    data=ArrayData.split((private_bundle.x[mine], private_bundle.y[mine])),
                )
            )
            device.join(address)
        _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    found = list(EventReader(state / "events.jsonl").read())
    replies = [event for event in found if event.kind == "reply"]
    assert len(replies) == 6
    assert all(set(event.metrics) == {"bytes_up"} for event in replies)
    rounds = [event for event in found if event.kind == "round_finished"]
    assert "per example, add-or-remove-one" in rounds[-1].protection
    server = [e.fields for e in device_ledger.read(state) if e.kind == "round charged"]
    assert [fields["mechanism"]["steps"] for fields in server] == [4, 4]
    own = [entry.fields for entry in device_ledger.read(tmp_path / "device0")]
    assert [fields["protection"] for fields in own] == ["differential privacy"] * 2
    assert own[-1]["mechanism"]["steps"] == 4
    assert server[-1]["epsilon"] <= own[-1]["epsilon"] < 1.2 * server[-1]["epsilon"]
