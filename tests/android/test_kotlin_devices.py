"""Devices of the Android library, each in a JVM, beside Python's, over a real SuperLink.

Run by `.ci/android`, which has built the library: TLS, node authentication, a whole federation.
"""

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file, save_file

from rootlet import ledger
from rootlet.data import ArrayData
from rootlet.epsilon import epsilon_at_most
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.session import FleetSession
from rootlet.participant import Participant
from rootlet.secagg.enrolment import Certificate, EnrolmentFolder
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.policy import SecurePolicy
from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.private_report import PrivacySpent
from rootlet_runtime.signing import public_key_hex
from rootlet_server import ServeConfig, serve
from rootlet_server.federation.privacy import FederationPrivacy
from rootlet_server.secagg.settings import SecureSettings

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern"),  # flwr's, building an app
]

BUILD = Path(__file__).parents[2] / "android_demo/build/build.py"
ROUNDS, KOTLIN, PYTHON = 3, 2, 2
DEVICES = KOTLIN + PYTHON


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

    def end(self) -> None:
        """Asks it to leave."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.stdin = None

    def said(self) -> str:
        """What it printed, once it has left."""
        assert self.process is not None
        return self.process.communicate(timeout=90)[0]

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


class Fleet:
    """Two devices in JVMs and two in Python, who join the server that is listening.

    Args:
        bundle: What they run.
        mlp: Where it lies, with examples.
        folder: For what they keep.
        authority: Enrols them; None for rounds in clear.
    """

    def __init__(self, bundle, mlp, folder, authority=None):
        self.bundle, self.mlp, self.authority = bundle, mlp, authority
        self.stop, self.threads, self.python = threading.Event(), [], []
        self.parts = [slice(n, None, DEVICES) for n in range(DEVICES)]
        self.kotlin = [
            KotlinDevice(folder / f"kotlin{n}", mlp.x[part], mlp.y[part])
            for n, part in enumerate(self.parts[:KOTLIN])
        ]
        self.keys = [NodeKey.generate() for _ in range(PYTHON)]
        self.node_keys, self.folder = folder / "keys", folder
        self.node_keys.mkdir()
        public = [d.public_pem for d in self.kotlin] + [k.public_pem for k in self.keys]
        for n, pem in enumerate(public):
            (self.node_keys / f"{n}.pub").write_bytes(pem)
        for device in self.kotlin if authority else ():
            identity = Ed25519PrivateKey.generate()
            enrolment = device.folder / "enrolment"
            enrolment.mkdir()
            (enrolment / "identity").write_bytes(identity.private_bytes_raw())
            public_key = identity.public_key().public_bytes_raw()
            (enrolment / "certificate").write_bytes(self.certificate(public_key).raw)
            authority_key = authority.public_key().public_bytes_raw()
            (enrolment / "authority.pub").write_bytes(authority_key)

    @property
    def devices(self):
        return [*self.kotlin, *self.python]

    def certificate(self, device):
        expires = datetime.now(UTC) + timedelta(days=1)
        return Certificate.issue(self.authority, device, name="device", expires=expires)

    def enrolled(self, number):
        """What a Python device's participant answers secure rounds with."""
        if self.authority is None:
            return None
        folder = EnrolmentFolder(self.folder / f"python{number}")
        certificate = self.certificate(folder.device_id())
        folder.install(certificate.raw, self.authority.public_key())
        return SecureParticipation.open(folder.path, SecurePolicy(min_live=DEVICES), self.bundle)

    def join(self, event):
        """Every device, at the server's address."""
        if event.kind != "listening":
            return
        assert event.node_auth
        publisher = public_key_hex(self.mlp.trusted_keys[0])
        for device in self.kotlin:
            device.start(event.address, event.root_certificate, self.mlp.path, publisher)
        for number, part in enumerate(self.parts[KOTLIN:]):
            trainer = Trainer(self.bundle)
            data = ArrayData((self.mlp.x[part], self.mlp.y[part]), None)
            participant = Participant(trainer, data, secure=self.enrolled(number))
            device = Noted(participant, trainer, len(self.mlp.x[part]))
            connection = FleetConnection(
                event.address,
                root_certificate=Path(event.root_certificate),
                node_key=self.keys[number],
                sleep=self.stop.wait,
            )
            self.python.append(device)
            run = FleetSession(connection, device, linger_s=1.0).run  # the server has ended by then
            self.threads.append(threading.Thread(target=run, args=(self.stop,), daemon=True))
            self.threads[-1].start()

    def served(self, **options):
        """What `serve` returns, once all have left."""
        config = ServeConfig(
            bundle=self.mlp.path,
            trusted_keys=tuple(self.mlp.trusted_keys),
            signing_key=self.mlp.signing_key_path,
            state_dir=self.folder / "state",
            out=self.folder / "improved.rootlet",
            min_devices=DEVICES,
            epochs=2,
            learning_rate=0.02,
            tls="auto",
            node_keys=self.node_keys,
            wait_s=60.0,
            deadline_s=60.0,
            **options,
        )
        try:
            result = serve(config, self.join)
        finally:
            self.stop.set()
            for device in self.kotlin:
                device.end()
            said = [device.said() for device in self.kotlin if device.process is not None]
            for thread in self.threads:
                thread.join(90)
        assert [event.devices for event in result.rounds] == [DEVICES] * config.rounds, said
        assert all(text.endswith("left\n") for text in said)
        return result

    def after(self, rounds):
        """The server's adapter after each round, as the devices or the new bundle have it."""
        improved = self.folder / "improved.rootlet"
        with Bundle.load(improved, trusted_keys=self.mlp.trusted_keys, minimum_version=2) as new:
            last = new.initial_adapter()
        return [*(self.devices[0].kept("received", n) for n in range(2, rounds + 1)), last]


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        yield bundle


def test_two_kotlin_and_two_python_devices_average_over_tls(mlp_bundle, bundle, tmp_path):
    fleet = Fleet(bundle, mlp_bundle, tmp_path)
    result = fleet.served(rounds=ROUNDS)
    assert result.evaluated.devices == DEVICES
    gain = result.evaluated.means["accuracy_received"]
    assert gain > result.rounds[0].means["accuracy_received"] + 0.2  # 0.29 was seen

    for device in fleet.kotlin:
        ledger.verify(device.folder / "ledger")
        entries = ledger.read(device.folder / "ledger")
        assert [entry.kind for entry in entries] == ["update"] * ROUNDS + ["metrics"]
        assert set(entries[0].fields["tensors"]) == set(bundle.initial_adapter())

    after = fleet.after(ROUNDS)
    weights = [device.examples for device in fleet.devices]
    for number in range(1, ROUNDS + 1):
        trained = [device.kept("trained", number) for device in fleet.devices]
        for name, found in after[number - 1].items():
            expected = np.average(np.float64([t[name] for t in trained]), axis=0, weights=weights)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
            assert all(np.abs(t[name] - found).max() > 0 for t in trained)
        if number > 1:
            for device in fleet.devices[1:]:
                for name, array in device.kept("received", number).items():
                    np.testing.assert_array_equal(array, after[number - 2][name])


def test_a_secure_round_sums_what_kotlin_and_python_devices_trained(mlp_bundle, bundle, tmp_path):
    authority = Ed25519PrivateKey.generate()
    fleet = Fleet(bundle, mlp_bundle, tmp_path, authority)
    trusted = (authority.public_key().public_bytes_raw().hex(),)
    secure = SecureSettings(authorities=trusted, min_live=DEVICES)
    fleet.served(rounds=2, secure=secure)
    unit = secure.bound / (2 ** (secure.value_bits - 1) - 1)
    for number, after in enumerate(fleet.after(2), start=1):
        for name, found in after.items():
            each = [device.kept("trained", number)[name] for device in fleet.devices]
            before = fleet.kotlin[0].kept("received", number)[name]
            assert np.abs(np.float64(each) - before).max() < secure.bound  # nothing saturates
            mean = np.mean(np.float64(each), axis=0)
            assert np.abs(found - mean).max() < unit  # each is rounded by less than one unit
            assert np.abs(found - before).max() > 10 * unit
    for device in fleet.kotlin:
        ledger.verify(device.folder / "ledger")
        fields = [entry.fields for entry in ledger.read(device.folder / "ledger")]
        stages = ["advertise", "share", "upload", "confirm", "unmask"] * 2
        assert [each.get("stage") for each in fields if "stage" in each] == stages
        uploads = [each for each in fields if each.get("stage") == "upload"]
        assert [each["tensors"] for each in uploads] == [["masked"]] * 2
        assert all(each["protection"] == "secure aggregation" for each in uploads)


def test_kotlin_devices_add_their_share_of_the_noise(mlp_bundle, bundle, tmp_path):
    authority = Ed25519PrivateKey.generate()
    fleet = Fleet(bundle, mlp_bundle, tmp_path, authority)
    trusted = (authority.public_key().public_bytes_raw().hex(),)
    fleet.served(
        rounds=1,
        secure=SecureSettings(authorities=trusted, min_live=DEVICES),
        privacy=FederationPrivacy(unit="device", max_norm=1.0, noise_multiplier=2.0, epsilon=8.0),
    )
    (after,) = fleet.after(1)
    before = fleet.kotlin[0].kept("received", 1)
    step = np.concatenate([np.ravel(after[name] - before[name]) for name in sorted(after)])
    for device in fleet.kotlin:
        (upload,) = [
            entry.fields
            for entry in ledger.read(device.folder / "ledger")
            if entry.fields.get("stage") == "upload"
        ]
        assert upload["protection"] == "secure aggregation, differential privacy"
        mechanism = upload["mechanism"]
        spent = PrivacySpent(**mechanism)
        assert (spent.unit, spent.max_grad_norm) == ("device", 1.0)
        assert upload["epsilon"] == pytest.approx(epsilon_at_most([spent], 1e-5), abs=1e-4)
        # All four add noise: on a mean of four it has 2 C / 4 at least a value, less if two had.
        assert np.std(step) > 0.9 * spent.noise_multiplier * 1.0 / DEVICES
