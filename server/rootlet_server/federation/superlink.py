"""A Flower SuperLink as a child process: started, waited for, and stopped without a trace."""

import secrets
import socket
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context
from types import TracebackType
from typing import Self
from urllib.error import URLError

from rootlet_server.errors import SuperLinkError
from rootlet_server.federation.address import join_host_port, require_guarded
from rootlet_server.federation.flower_version import require_pinned_flwr
from rootlet_server.federation.private_file import write_private
from rootlet_server.federation.process import ChildProcess
from rootlet_server.federation.tls import TlsFiles

_START_TIMEOUT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class SuperLinkConfig:
    """How to start a SuperLink.

    Attributes:
        host: The address to listen on.
        port: The port, or 0 for a free one.
        tls: Certificate files, or None for plain HTTP.
        node_auth: Whether only registered device keys may join (needs `tls`).
        state_dir: Receives the log, Flower's home and the task secret.
        database: SQLite file that keeps nodes and runs over a restart, or None to keep them in
            memory.
        start_timeout_s: How long to wait until it answers, in seconds.

    Raises:
        PublicAddressError: `host` is public and TLS or node authentication is missing.
        ServeConfigError: node authentication without TLS.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls: TlsFiles | None = None
    node_auth: bool = False
    database: Path | None = None
    start_timeout_s: float = _START_TIMEOUT_S

    def __post_init__(self) -> None:
        require_guarded(self.host, tls=self.tls is not None, node_auth=self.node_auth)


class SuperLink:
    """A running SuperLink, as a context manager.

    Telemetry, update look-ups and the installation of dependencies at run time are off. Tasks are
    handed only to the holder of `task_secret`, and over the network only the Fleet API answers.
    """

    def __init__(self, config: SuperLinkConfig) -> None:
        require_pinned_flwr()
        self.config = config
        self.task_secret = secrets.token_bytes(32)
        self.port = _bindable_port(config.host, config.port)
        self._child: ChildProcess | None = None

    @property
    def address(self) -> str:
        """`host:port` by which processes of this machine reach it."""
        tls = self.config.tls
        host = tls.local_name if tls else self.config.host
        return join_host_port(host, self.port)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that every Flower process of this server runs under."""
        return {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_HOME": str(self.config.state_dir / "flower"),
        }

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._child is not None and self._child.returncode is None

    @property
    def log_path(self) -> Path:
        """The log of the SuperLink."""
        return self.config.state_dir / "superlink.log"

    def __enter__(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            SuperLinkError: it ended or did not answer in time; the message carries the end of its
                log.
        """
        self.config.state_dir.mkdir(parents=True, exist_ok=True)
        secret_path = self.config.state_dir / "task.secret"
        write_private(secret_path, self.task_secret)
        self._child = ChildProcess(
            "rootlet_server.federation.superlink_main",
            self._arguments(secret_path),
            log_path=self.log_path,
            environment=self.environment,
        )
        try:
            self._wait_until_healthy(self._child)
        except BaseException:
            self._child.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        if self._child is not None:
            self._child.stop()

    def _arguments(self, secret_path: Path) -> list[str]:
        config = self.config
        arguments = ["--host", config.host, "--port", str(self.port), "--isolation", "process"]
        arguments += ["--superexec-auth-secret-file", str(secret_path)]
        arguments += ["--disable-runtime-dependency-installation"]
        if config.tls is None:
            arguments += ["--insecure"]
        else:
            arguments += ["--ssl-ca-certfile", str(config.tls.ca)]
            arguments += ["--ssl-certfile", str(config.tls.certificate)]
            arguments += ["--ssl-keyfile", str(config.tls.key)]
        if config.node_auth:
            arguments += ["--enable-supernode-auth"]
        if config.database is not None:
            arguments += ["--database", str(config.database)]
        return arguments

    def _wait_until_healthy(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        while time.monotonic() < deadline:
            if child.returncode is not None:
                raise SuperLinkError(
                    f"the SuperLink on {self.address} ended with code {child.returncode} while "
                    f"starting; the end of {child.log_path}:\n{child.log_tail()}"
                )
            if self._answers():
                return
            time.sleep(_POLL_S)
        raise SuperLinkError(
            f"the SuperLink on {self.address} did not answer within "
            f"{self.config.start_timeout_s:g} s; the end of {child.log_path}:\n{child.log_tail()}"
        )

    def _answers(self) -> bool:
        tls = self.config.tls
        scheme, context = "http", None
        if tls is not None:
            scheme, context = "https", create_default_context(cafile=str(tls.ca))
        request = urllib.request.Request(f"{scheme}://{self.address}/health", method="HEAD")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=2, context=context) as response:  # noqa: S310
                return bool(response.status == 200)
        except (URLError, OSError):
            return False


def _bindable_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        SuperLinkError: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SuperLinkError(
                f"cannot listen on {join_host_port(host, port)}: {error.strerror}. Choose another "
                "--port (0 takes a free one), end what listens there, or give an address of this "
                "machine as --host."
            ) from error
        return int(probe.getsockname()[1])
