"""A real SuperLink with TLS and node authentication, on 127.0.0.1, stopped with its children."""

import contextlib
import datetime
import importlib.util
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.envelope import Answer
from rootlet.fleet.keys import NodeKey
from rootlet.fleet.records import ArrayRecord, MetricRecord
from rootlet.fleet.session import FleetSession

BIN = Path(sys.executable).parent
ECHO_APP = Path(__file__).parent / "echo_app"
START_TIMEOUT_S = 90.0


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _certificate(name, key, issuer, issuer_key, extension):
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]) for common in (name, issuer)
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_certificates(folder: Path, names: Sequence[str] = ()) -> tuple[Path, Path, Path]:
    """Write a CA's certificate, and the certificate and key of a server at `names` or 127.0.0.1."""
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    local = [x509.DNSName("localhost"), loopback]
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names] or local)
    authority = x509.BasicConstraints(ca=True, path_length=0)
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(_certificate("ca", ca_key, "ca", ca_key, authority))
    paths[1].write_bytes(_certificate("server", server_key, "ca", ca_key, alternatives))
    key = server_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths[2].write_bytes(key)
    return paths


@dataclass
class Processes:
    """Child processes, each in its own group, so that their children end with them."""

    folder: Path
    environment: dict[str, str]
    running: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: str) -> subprocess.Popen:
        log = self.folder / f"{Path(command[0]).name}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def stop(self) -> None:
        for sent, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            for process in self.running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, sent)
            for process in self.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)


def _environment(home: Path) -> dict[str, str]:
    packages = {
        str(Path(importlib.util.find_spec(name).origin).parents[1])
        for name in ("rootlet", "rootlet_runtime")
    }
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(sorted(packages)),
        "PYTHONWARNINGS": "ignore",
    }


class SuperLink:
    """A `flower-superlink` with TLS and node authentication, or with neither.

    Attributes:
        address: `127.0.0.1:port`.
        root_certificate: For connections; None where there is no TLS.
        processes: For SuperNodes and devices that belong to the same test.
    """

    def __init__(self, folder: Path, *, secure: bool = True) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        ca, certificate, key = make_certificates(folder)
        self.root_certificate = ca if secure else None
        home = folder / "flwr-home"
        home.mkdir()
        trust = f'root-certificates = "{ca}"' if secure else "insecure = true"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "t"\n\n[superlink.t]\naddress = "{self.address}"\n{trust}\n'
        )
        self.processes = Processes(folder, _environment(home))
        security = (
            *("--ssl-ca-certfile", str(ca), "--ssl-certfile", str(certificate)),
            *("--ssl-keyfile", str(key), "--enable-supernode-auth"),
        )
        self.processes.start(
            str(BIN / "flower-superlink"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            "--disable-runtime-dependency-installation",
            *(security if secure else ("--insecure",)),
        )
        self._wait_until_it_listens()

    def flwr(self, *arguments: str) -> str:
        """Run `flwr …` and return what it printed."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            cwd=self.folder,
            env=self.processes.environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{done.args}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def register(self, key: NodeKey) -> NodeKey:
        """Register a node's public key, as an operator does."""
        path = self.folder / f"{time.monotonic_ns()}.pub"
        path.write_text(key.public_openssh)
        self.flwr("supernode", "register", str(path), "t")
        return key

    def run_echo_app(self, **config: object) -> Path:
        """Submit the echo app; return the file to which its ServerApp writes."""
        result = self.folder / f"result-{time.monotonic_ns()}"
        app = self.folder / "echo_app"
        if not app.exists():
            shutil.copytree(ECHO_APP, app, ignore=shutil.ignore_patterns("__pycache__"))
        pairs = {"result": str(result), **config}
        text = " ".join(f"{key.replace('_', '-')}={json.dumps(v)}" for key, v in pairs.items())
        self.flwr("run", str(app), "t", "-c", text)
        return result

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for kind in ("*.log", "*.error")
            for path in sorted(self.folder.glob(kind))
        )

    def stop(self) -> None:
        self.processes.stop()

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.processes.running[0].poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the SuperLink did not start:\n{self.logs()}")


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    """A SuperLink with TLS and node authentication."""
    link = SuperLink(tmp_path_factory.mktemp("superlink"))
    yield link
    link.stop()


@pytest.fixture
def open_superlink(tmp_path):
    """A SuperLink with neither."""
    link = SuperLink(tmp_path, secure=False)
    yield link
    link.stop()


@pytest.fixture
def start_supernode():
    """Start a stock SuperNode with a registered key; it ends with its SuperLink."""

    def start(superlink: SuperLink, **node_config: object) -> None:
        key = superlink.folder / f"{time.monotonic_ns()}.key"
        superlink.register(NodeKey.generate("P-384")).save(key)
        config = " ".join(f"{name}={json.dumps(value)}" for name, value in node_config.items())
        superlink.processes.start(
            str(BIN / "flower-supernode"),
            *("--root-certificates", str(superlink.root_certificate)),
            *("--superlink", superlink.address, "--port", str(free_port())),
            *("--auth-supernode-private-key", str(key), "--node-config", config),
        )

    return start


class Adder:
    """A participant that adds a number to what it receives."""

    def __init__(self, amount: float = 1.0, n_examples: int = 1) -> None:
        self.amount, self.n_examples = amount, n_examples
        self.requests = []

    def answer(self, request, *, should_stop):
        self.requests.append(request)
        arrays = {
            name: value + np.float32(self.amount)
            for name, value in request.records["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": self.n_examples, "seen": len(self.requests)})
        return Answer({"arrays": ArrayRecord(arrays), "metrics": metrics})


class Device:
    """A session in a thread."""

    def __init__(
        self, superlink: SuperLink, key: NodeKey | None, participant=None, **options
    ) -> None:
        connect = {"heartbeat_interval_s": 10.0} | options.pop("connect", {})
        self.connection = FleetConnection(
            superlink.address, root_certificate=superlink.root_certificate, node_key=key, **connect
        )
        self.participant = participant or Adder()
        self.events = []
        self.error = None
        self.stop_event = threading.Event()
        self.on_event = options.pop("on_event", lambda event: None)
        self.session = FleetSession(self.connection, self.participant, **options)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def kinds(self) -> list[str]:
        return [event.kind.name for event in self.events]

    def wait_for(self, kind: str, timeout_s: float = 60.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in list(self.events):
                if event.kind.name == kind:
                    return event
            assert self.error is None, self.error
            time.sleep(0.02)
        raise AssertionError(f"no {kind} in {timeout_s} s; {self.events}")

    def stop(self) -> None:
        self.stop_event.set()
        self.thread.join(90)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        try:
            self.session.run(self.stop_event, on_event=self._record)
        except Exception as error:
            self.error = error

    def _record(self, event) -> None:
        self.events.append(event)
        self.on_event(event)


@pytest.fixture
def start_device():
    """Start a `Device`; those still running are stopped after the test."""
    devices = []

    def start(*arguments, **options) -> Device:
        devices.append(Device(*arguments, **options))
        return devices[-1]

    yield start
    for device in devices:
        device.stop()


@pytest.fixture
def adder():
    """The class of a participant that adds a number to what it receives."""
    return Adder


@pytest.fixture
def read_result():
    """Wait until an echo app's round is done; return its answers."""

    def read(result: Path, *, rounds: int = 1, timeout_s: float = 90.0, logs=str) -> list[dict]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            lines = result.read_text().splitlines() if result.exists() else []
            answers = [json.loads(line) for line in lines]
            if sum(answer["done"] for answer in answers) >= rounds:
                return [answer for answer in answers if not answer["done"]]
            assert not result.with_suffix(".error").exists(), logs()
            time.sleep(0.05)
        raise AssertionError(f"no result in {timeout_s} s\n{logs()}")

    return read
