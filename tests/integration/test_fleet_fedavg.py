"""One FedAvg round of a real bundle: our device beside a stock SuperNode with the same app."""

import json
import time

import numpy as np
import pytest

from rootlet.data import ArrayData
from rootlet.fleet.keys import NodeKey
from rootlet.participant import Participant
from rootlet.protocol import ERROR_MALFORMED, TrainRequest
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.trainer import Trainer


@pytest.fixture
def bundle(mlp_bundle):
    return Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys)


@pytest.fixture
def initial(bundle, tmp_path):
    """Write what the ServerApp sends: the adapter, and the settings beside it."""

    def write(**changes):
        adapter = bundle.initial_adapter()
        request = TrainRequest(
            adapter=adapter,
            bundle=bundle.manifest.name,
            bundle_version=bundle.manifest.version,
            manifest_sha256=bundle.manifest_sha256,
            round=1,
            epochs=2,
            batch_size=16,
            learning_rate=0.05,
        )
        np.savez(tmp_path / "initial.npz", **adapter)
        settings = dict(request.to_records()["config"]) | changes
        (tmp_path / "initial.json").write_text(json.dumps(settings))
        return tmp_path / "initial.npz"

    return write


def wait_for(path, logs, timeout_s=90.0):
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, logs()
        assert not path.with_suffix(".error").exists(), logs()
        time.sleep(0.1)
    return np.load(path)


def test_a_request_that_is_not_rootlets_is_answered_with_an_error(
    superlink, start_device, mlp_bundle, bundle, read_result
):
    data = ArrayData.split((mlp_bundle.x[:20], mlp_bundle.y[:20]))
    participant = Participant(Trainer(bundle), data)
    device = start_device(superlink, superlink.register(NodeKey.generate()), participant)
    device.wait_for("ACTIVATED")
    result = superlink.run_echo_app()  # its records are not rootlet's
    (answer,) = read_result(result, logs=superlink.logs)
    device.stop()
    assert answer["error"] == ERROR_MALFORMED
    assert "protocol is None" in answer["reason"]


def test_our_device_and_a_stock_supernode_average(
    superlink, start_device, start_supernode, mlp_bundle, bundle, initial, tmp_path
):
    x, y = mlp_bundle.x, mlp_bundle.y
    np.savez(tmp_path / "node.npz", x=x[:100], y=y[:100])
    start_supernode(superlink, data=str(tmp_path / "node.npz"))
    data = ArrayData.split((x[100:250], y[100:250]))
    trainer = Trainer(bundle)
    participant = Participant(trainer, data, rng=np.random.default_rng(3))
    device = start_device(superlink, superlink.register(NodeKey.generate()), participant)
    result = superlink.run_echo_app(
        mode="fedavg",
        nodes=2,
        initial=str(initial()),
        bundle=str(mlp_bundle.path),
        key=str(mlp_bundle.public_key_path),
    )
    with wait_for(result, superlink.logs) as saved:
        got = dict(saved)
    device.stop()

    weights = [int(got[f"weight:{number}"]) for number in range(2)]
    assert sorted(weights) == [80, 120]  # one in five examples is held out
    started = bundle.initial_adapter()
    for name, before in started.items():
        replies = [got[f"reply{number}:{name}"] for number in range(2)]
        expected = np.average(np.float64(replies), axis=0, weights=weights)
        np.testing.assert_allclose(got[f"average:{name}"], expected, rtol=1e-6, atol=1e-7)
        assert all(np.abs(reply - before).max() > 0 for reply in replies)  # both trained
        assert np.abs(replies[0] - replies[1]).max() > 0  # each on its own examples

    # Our device's reply is what its trainer holds now, bit for bit.
    ours = weights.index(120)
    for name, array in trainer.adapter.items():
        np.testing.assert_array_equal(got[f"reply{ours}:{name}"], array)
