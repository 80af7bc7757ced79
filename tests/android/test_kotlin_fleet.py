"""A device in Kotlin against a real SuperLink, with TLS and node authentication and without."""

import contextlib
import json
import socket
import ssl
import subprocess
import time

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rootlet.fleet.keys import NodeKey
from rootlet.protocol import ERROR_MALFORMED, TrainRequest

pytestmark = pytest.mark.timeout(600)
MAIN = "org.rootlet.fleet.FleetDeviceKt"
AMOUNT = 0.375


class KotlinDevice:
    """A device's process; leaving it ends its input, and so the device."""

    def __init__(self, command, folder, *arguments):
        self.log = folder / f"device-{time.monotonic_ns()}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self):
        return self.log.read_text().splitlines()

    def wait_for(self, kind, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not any(line.startswith(kind) for line in self.lines()):
            assert self.process.poll() is None, self.lines()
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def leave(self):
        self.process.stdin.close()
        assert self.process.wait(90) == 0, self.lines()
        return [line.split()[0] for line in self.lines()]


@pytest.fixture
def start(java_command, tmp_path):
    """Start a device; one that still runs after the test is killed."""
    devices = []

    def start_device(*arguments):
        devices.append(KotlinDevice(java_command(MAIN), tmp_path, *arguments))
        return devices[-1]

    yield start_device
    for device in devices:
        device.process.kill()
        device.process.wait()
        device.process.stdin.close()


@pytest.fixture
def key_file(superlink, tmp_path):
    """A registered node key, as the Kotlin device reads it."""
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "node.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    superlink.register(NodeKey(key))
    return path


def test_a_kotlin_device_answers_rounds(superlink, key_file, start, read_result):
    device = start(superlink.address, superlink.root_certificate, key_file, "adder", AMOUNT, "-")
    device.wait_for("ACTIVATED")
    answers = read_result(superlink.run_echo_app(rounds=3), rounds=3, logs=superlink.logs)
    got = [(answer["round"], answer["w"], answer["metrics"]) for answer in answers]
    assert got == [
        (number, [number + AMOUNT] * 4, {"num-examples": 1, "seen": number}) for number in (1, 2, 3)
    ]
    kinds = device.leave()
    assert kinds == ["ACTIVATED", *["PULLED", "ANSWERED", "PUSHED"] * 3, "TAKEN", "DEACTIVATED"]


def test_a_kotlin_participant_is_averaged_by_flower(superlink, key_file, start, tmp_path):
    device = start(
        superlink.address, superlink.root_certificate, key_file, "participant", AMOUNT, "-"
    )
    device.wait_for("ACTIVATED")
    rng = np.random.default_rng(5)
    adapter = {
        "layer.a": rng.integers(-64, 64, (300, 7)).astype(np.float32) / 8,  # sums are exact
        "layer.b": rng.integers(-64, 64, 2_000_000).astype(np.float32) / 8,  # two chunks
        "transposed": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
    }
    request = TrainRequest(
        adapter=adapter,
        bundle="tiny",
        bundle_version=2,
        manifest_sha256="ab" * 32,
        round=1,
        epochs=2,
        batch_size=16,
        learning_rate=0.05,
    )
    initial = tmp_path / "initial.npz"
    np.savez(initial, **adapter)
    initial.with_suffix(".json").write_text(json.dumps(dict(request.to_records()["config"])))
    result = superlink.run_echo_app(mode="fedavg", nodes=1, initial=str(initial))
    deadline = time.monotonic() + 90
    while not result.exists():
        assert time.monotonic() < deadline, f"{device.lines()}\n{superlink.logs()}"
        assert not result.with_suffix(".error").exists(), superlink.logs()
        time.sleep(0.1)
    with np.load(result) as saved:
        got = dict(saved)
    assert got["weight:0"] == 9
    for name, before in adapter.items():
        np.testing.assert_array_equal(got[f"reply0:{name}"], before + np.float32(AMOUNT))
        np.testing.assert_array_equal(got[f"average:{name}"], before + np.float32(AMOUNT))
    assert device.leave()[-2:] == ["TAKEN", "DEACTIVATED"]


def test_a_kotlin_participant_refuses_what_is_not_rootlets(superlink, key_file, start, read_result):
    device = start(
        superlink.address, superlink.root_certificate, key_file, "participant", AMOUNT, "-"
    )
    device.wait_for("ACTIVATED")
    (answer,) = read_result(superlink.run_echo_app(), logs=superlink.logs)
    assert answer["error"] == ERROR_MALFORMED
    assert "protocol is None" in answer["reason"]
    device.leave()


def test_a_killed_kotlin_device_resumes_as_the_same_node(
    superlink, key_file, start, read_result, tmp_path
):
    arguments = (superlink.address, superlink.root_certificate, key_file, "adder", AMOUNT)
    killed = start(*arguments, tmp_path / "mailbox")
    killed.wait_for("ACTIVATED")
    killed.process.kill()
    killed.process.wait()
    again = start(*arguments, tmp_path / "mailbox")
    again.wait_for("RESUMED", timeout_s=15.0)  # no wait for two heartbeat intervals
    (answer,) = read_result(superlink.run_echo_app(), logs=superlink.logs)
    assert answer["w"] == [1 + AMOUNT] * 4
    again.leave()


def test_a_certificate_of_another_authority_is_refused(
    superlink, key_file, start, make_certificates, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    authority, _, _ = make_certificates(other)
    device = start(superlink.address, authority, key_file, "adder", AMOUNT, "-")
    assert device.process.wait(60) != 0
    assert any("does not vouch for" in line for line in device.lines()), device.lines()


def test_a_name_that_the_certificate_does_not_have_is_refused(
    key_file, start, make_certificates, tmp_path
):
    authority, certificate, key = make_certificates(tmp_path, names=["elsewhere.example"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        device = start(address, authority, key_file, "adder", AMOUNT, "-")
        listening.settimeout(60)
        connection, _ = listening.accept()
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            assert tls.recv(1) == b""  # it says nothing to a stranger
        assert device.process.wait(60) != 0
    assert any("does not vouch for" in line for line in device.lines()), device.lines()


def test_an_open_superlink_takes_the_registration(open_superlink, start, read_result):
    device = start(f"http://{open_superlink.address}", "-", "-", "adder", AMOUNT, "-")
    device.wait_for("ACTIVATED")
    (answer,) = read_result(open_superlink.run_echo_app(), logs=open_superlink.logs)
    assert answer["w"] == [1 + AMOUNT] * 4
    device.leave()
