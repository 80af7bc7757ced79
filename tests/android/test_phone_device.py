"""What the app does behind its screen, in a JVM, in a federation over a real SuperLink with TLS.

Run by `.ci/android`, which has built the library. The key lies in a PKCS #12 store here, and in the
Android Keystore on a phone: the same class signs with either. The library is shrunk by R8, with the
rules of the APK, and nothing of it is there that the rules and this `main` do not reach.
"""

import datetime
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from safetensors.numpy import save_file

from rootlet import ledger
from rootlet_runtime.signing import public_key_hex
from rootlet_server import ServeConfig, serve

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern"),  # flwr's, building an app
]

BUILD = Path(__file__).parents[2] / "android_demo/build"
sys.path.insert(0, str(BUILD))
import jvm  # noqa: E402
import shrink  # noqa: E402

MAIN = "org.rootlet.device.PhoneMainKt"
WORD = b"a-password"
ROUNDS = 2


def key_store(path: Path) -> bytes:
    """Write a store with a P-256 pair; return the public key's PEM, for the operator."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    encryption = serialization.BestAvailableEncryption(WORD)
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(b"node", key, certificate, None, encryption)
    )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


@pytest.fixture
def phone_command(tmp_path):
    """The command that runs the shrunk library, up to its arguments."""
    classes = {
        path.relative_to(jvm.OUT / root).as_posix(): path.read_bytes()
        for root in ("core", "core-test")
        for path in (jvm.OUT / root).rglob("*.class")
        if root == "core" or path.stem.startswith(("PhoneMain", "TestKeys"))
    }
    rules, jar = tmp_path / "main.pro", tmp_path / "shrunk.jar"
    rules.write_text(f"-keep class {MAIN} {{ public static void main(java.lang.String[]); }}\n")
    packed = {**classes, **shrink.reached(classes, jvm.OUT)}
    shrink.r8(packed, tmp_path, [rules], ["--classfile"], jar)
    with zipfile.ZipFile(jar) as shrunk:
        names = set(shrunk.namelist())
    assert "org/rootlet/device/PhoneDevice.class" in names
    assert "org/rootlet/fleet/PemNodeKey.class" not in names
    before, engine = jvm.engine_options(jvm.OUT)
    return [*before, *jvm.java_command([jar], MAIN, *engine)]


def test_a_phone_takes_part_and_tells_what_left_it(mlp_bundle, tmp_path, phone_command):
    phone = tmp_path / "phone"
    (tmp_path / "keys").mkdir()
    phone.mkdir()
    (tmp_path / "keys/phone.pub").write_bytes(key_store(phone / "keys.p12"))
    x, y = mlp_bundle.x[:48], mlp_bundle.y[:48].astype(np.float32)
    save_file({"x": np.ascontiguousarray(x), "y": y}, phone / "examples.safetensors")
    processes = []

    def hear(event):
        if event.kind == "run_finished":  # the phone leaves while the server is there to tell
            processes[0].stdin.close()
            processes[0].stdin = None
        if event.kind == "listening":
            assert event.node_auth
            publisher = public_key_hex(mlp_bundle.trusted_keys[0])
            command = [
                *phone_command,
                event.address,
                event.root_certificate,
                mlp_bundle.path,
                publisher,
                phone,
            ]
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    try:
        result = serve(
            ServeConfig(
                bundle=mlp_bundle.path,
                trusted_keys=tuple(mlp_bundle.trusted_keys),
                signing_key=mlp_bundle.signing_key_path,
                state_dir=tmp_path / "state",
                out=tmp_path / "improved.rootlet",
                rounds=ROUNDS,
                min_devices=1,
                epochs=3,
                learning_rate=0.02,
                tls="auto",
                node_keys=tmp_path / "keys",
                wait_s=60.0,
                deadline_s=60.0,
            ),
            hear,
        )
    finally:
        said, events = processes[0].communicate(timeout=90) if processes else ("", "")
    assert [event.devices for event in result.rounds] == [1] * ROUNDS, events
    assert "DROPPED" not in events
    told = dict(line.split(" ", 1) for line in said.splitlines())
    entries = ledger.read(phone / "device/ledger")
    ledger.verify(phone / "device/ledger")
    assert [entry.kind for entry in entries] == ["update"] * ROUNDS + ["metrics"]
    assert all(entry.fields["server"].startswith("https://") for entry in entries)
    total = sum(entry.fields["bytes"] for entry in entries)
    assert told["LEFT"] == (
        f"Left this phone: 2 rounds of training, 1 evaluation; {total} bytes in all. "
        "2 rounds under no protection but TLS."
    )
    assert told["TOLD"] == f"3 answers were sent to {entries[0].fields['server']}."
    assert told["KNOWS"].startswith("Right on the 48 drawings that it learnt from: ")
    assert "with what the server sent" in told["KNOWS"]
