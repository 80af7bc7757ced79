"""Devices of the Android library, each in a JVM, beside Python's, over a real SuperLink.

Run by `.ci/android`, which has built the library: TLS, node authentication, a whole federation.
"""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load_file, save_file

from rootlet import ledger
from rootlet.data import ArrayData
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.session import FleetSession
from rootlet.participant import Participant
from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.signing import public_key_hex
from rootlet_server import ServeConfig, serve

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern"),  # flwr's, building an app
]

BUILD = Path(__file__).parents[2] / "android_demo/build/build.py"
ROUNDS, KOTLIN, PYTHON = 3, 2, 2


class KotlinDevice:
    """One device's folder and process."""

    def __init__(self, folder: Path, x: np.ndarray, y: np.ndarray) -> None:
        self.folder, self.examples = folder, len(x)
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        private = key.private_bytes(pem, form, serialization.NoEncryption())
        (folder / "node.key").write_bytes(private)
        (folder / "node.key").chmod(0o600)
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public_pem = key.public_key().public_bytes(pem, public)
        save_file({"x": x, "y": y.astype(np.float32)}, folder / "examples.safetensors")
        self.process: subprocess.Popen[str] | None = None

    def start(self, address: str, certificate: str, bundle: Path, publisher: str) -> None:
        command = [sys.executable, BUILD, "run", "org.rootlet.fleet.TrainingDeviceKt"]
        self.process = subprocess.Popen(
            [*command, address, certificate, bundle, publisher, self.folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def leave(self) -> str:
        """What it printed."""
        assert self.process is not None
        return self.process.communicate("", timeout=90)[0]

    def kept(self, what: str, number: int) -> dict[str, np.ndarray]:
        return load_file(self.folder / f"{what}-{number}.safetensors")


class Noted:
    """A Python device's participant that notes what it received and what it trained."""

    def __init__(self, participant: Participant, trainer: Trainer, examples: int) -> None:
        self._participant, self._trainer, self.examples = participant, trainer, examples
        self.notes: list[dict[str, dict[str, np.ndarray]]] = []

    def answer(self, request, *, should_stop):
        answer = self._participant.answer(request, should_stop=should_stop)
        if request.message_type == "train" and answer is not None and not answer.error:
            received = dict(request.records["arrays"])
            self.notes.append({"received": received, "trained": self._trainer.adapter})
        return answer

    def kept(self, what: str, number: int) -> dict[str, np.ndarray]:
        return self.notes[number - 1][what]


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        yield bundle


def test_two_kotlin_and_two_python_devices_average_over_tls(mlp_bundle, bundle, tmp_path):
    parts = [slice(n, None, KOTLIN + PYTHON) for n in range(KOTLIN + PYTHON)]
    kotlin = [
        KotlinDevice(tmp_path / f"kotlin{n}", mlp_bundle.x[part], mlp_bundle.y[part])
        for n, part in enumerate(parts[:KOTLIN])
    ]
    keys = [NodeKey.generate() for _ in range(PYTHON)]
    (tmp_path / "keys").mkdir()
    for n, pem in enumerate([d.public_pem for d in kotlin] + [k.public_pem for k in keys]):
        (tmp_path / "keys" / f"{n}.pub").write_bytes(pem)
    noted, threads, stop = [], [], threading.Event()

    def join_python(address, certificate):
        for key, part in zip(keys, parts[KOTLIN:], strict=True):
            trainer = Trainer(bundle)
            data = ArrayData((mlp_bundle.x[part], mlp_bundle.y[part]), None)
            device = Noted(Participant(trainer, data), trainer, len(mlp_bundle.x[part]))
            connection = FleetConnection(
                address, root_certificate=Path(certificate), node_key=key, sleep=stop.wait
            )
            session = FleetSession(connection, device)
            noted.append(device)
            threads.append(threading.Thread(target=session.run, args=(stop,), daemon=True))
            threads[-1].start()

    def hear(event):
        if event.kind == "listening":
            assert event.node_auth
            publisher = public_key_hex(mlp_bundle.trusted_keys[0])
            for device in kotlin:
                device.start(event.address, event.root_certificate, mlp_bundle.path, publisher)
            join_python(event.address, event.root_certificate)

    try:
        result = serve(
            ServeConfig(
                bundle=mlp_bundle.path,
                trusted_keys=tuple(mlp_bundle.trusted_keys),
                signing_key=mlp_bundle.signing_key_path,
                state_dir=tmp_path / "state",
                out=tmp_path / "improved.rootlet",
                rounds=ROUNDS,
                min_devices=KOTLIN + PYTHON,
                epochs=2,
                learning_rate=0.02,
                tls="auto",
                node_keys=tmp_path / "keys",
                wait_s=60.0,
                deadline_s=60.0,
            ),
            hear,
        )
    finally:
        stop.set()
        said = [device.leave() for device in kotlin if device.process is not None]
        for thread in threads:
            thread.join(90)
    assert [event.devices for event in result.rounds] == [KOTLIN + PYTHON] * ROUNDS, said
    assert all(text.endswith("left\n") for text in said)
    assert result.evaluated.devices == KOTLIN + PYTHON
    gain = result.evaluated.means["accuracy_received"]
    assert gain > result.rounds[0].means["accuracy_received"] + 0.2  # 0.29 was seen

    for device in kotlin:
        ledger.verify(device.folder / "ledger")
        entries = ledger.read(device.folder / "ledger")
        assert [entry.kind for entry in entries] == ["update"] * ROUNDS + ["metrics"]
        assert set(entries[0].fields["tensors"]) == set(bundle.initial_adapter())

    devices = [*kotlin, *noted]
    with Bundle.load(
        tmp_path / "improved.rootlet", trusted_keys=mlp_bundle.trusted_keys, minimum_version=2
    ) as improved:
        after = {n + 1: devices[0].kept("received", n + 1) for n in range(1, ROUNDS)}
        after[ROUNDS + 1] = improved.initial_adapter()
    weights = [device.examples for device in devices]
    for number in range(1, ROUNDS + 1):
        trained = [device.kept("trained", number) for device in devices]
        for name, found in after[number + 1].items():
            expected = np.average(np.float64([t[name] for t in trained]), axis=0, weights=weights)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
            assert all(np.abs(t[name] - found).max() > 0 for t in trained)
        if number > 1:
            for device in devices[1:]:
                for name, array in device.kept("received", number).items():
                    np.testing.assert_array_equal(array, after[number][name])
