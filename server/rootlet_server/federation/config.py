"""What `rootlet serve` is told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet.compression import Compression
from rootlet.errors import RecordError
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.address import is_wildcard, require_guarded
from rootlet_server.federation.privacy import FederationPrivacy
from rootlet_server.federation.strategies import OF_THE_MEAN, STRATEGIES, make_settings
from rootlet_server.secagg.settings import SecureSettings

MOST_OVER_SELECTION = 10.0

TlsChoice = Literal["off", "auto"] | tuple[Path, Path, Path]


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A federation to serve.

    Attributes:
        bundle: The bundle that the devices hold.
        trusted_keys: Publishers whose bundles may be served; the signing key's must be among them.
        signing_key: PEM file of the Ed25519 private key that signs the improved bundle.
        state_dir: Keeps the round checkpoint, certificates, events and logs.
        out: Where the improved bundle goes, or None for `NAME-VERSION.rootlet` in `state_dir`.
        events: The event log, or None for `events.jsonl` in `state_dir`.
        rounds: How many rounds to run.
        min_devices: Devices that must be online before a round starts.
        cohort_size: Devices asked in a round, or None for all that are online.
        epochs: Passes over a device's examples in a round; None for the bundle's own default.
        batch_size: Examples in a step; None for the bundle's own default.
        learning_rate: Step size; None for the bundle's own default.
        deadline_s: How long a round waits for answers, in seconds.
        wait_s: How long a round waits for `min_devices`, in seconds.
        max_examples: The largest number of examples by which one device may weigh.
        host: The address to listen on.
        port: The port, or 0 for a free one.
        tls: `off`, `auto` (a local authority, made once), or PEM files (CA, certificate, key).
        tls_names: Names and addresses that devices dial, for the certificate of `auto`.
        node_keys: Directory or files of the device public keys that may join; None lets every
            device join, which only a loopback address allows.
        database: SQLite file that keeps Flower's nodes and runs over a restart, or None.
        evaluate_data: `.npz` file with `x` and `y` on which the server itself evaluates, or None.
        feedback: A refreshed feedback for the devices, read again before every round; the file may
            come later, its folder may not. None for none.
        resume: Refuse to begin anew where there is no round to go on from.
        max_update_norm: The Euclidean length beyond which an update is left out.
        secure: Secure aggregation of every round, or None for updates in clear.
        privacy: Differential privacy and its budget, or None for none.
        strategy: How answers become the next adapter, by its name in `strategies.STRATEGIES`; None
            for `loramean` where the bundle's A learns and single updates are seen, else `fedavg`.
        strategy_options: Its options by name, as text or numbers.
        over_select: How many times `cohort_size` are asked; the round ends with the first
            `cohort_size` answers, so that it need not wait for the slowest.
        min_replies: Answers below which a round is repeated; a strategy may need more.
        tags: TOML file of tags and the key files in `node_keys` that carry them.
        select: Tags that a device must carry, each of them, to be asked.
        compression: How updates travel: `int8`, `int16` (stochastic quantisation) or `top-k`; None
            for whole adapters in float32.
        top_k: Share of the values that `top-k` sends, in (0, 1].

    Raises:
        ServeConfigError: a value outside its bounds.
        PublicAddressError: a public `host` without TLS and node keys.
    """

    bundle: Path
    trusted_keys: tuple[Ed25519PublicKey, ...]
    signing_key: Path
    state_dir: Path
    out: Path | None = None
    events: Path | None = None
    rounds: int = 5
    min_devices: int = 2
    cohort_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    deadline_s: float = 600.0
    wait_s: float = 3600.0
    max_examples: int = 100_000
    host: str = "127.0.0.1"
    port: int = 0
    tls: TlsChoice = "off"
    tls_names: tuple[str, ...] = ()
    node_keys: Path | tuple[Path, ...] | None = None
    database: Path | None = None
    evaluate_data: Path | None = None
    feedback: Path | None = None
    resume: bool = False
    max_update_norm: float = 1e4
    secure: SecureSettings | None = None
    privacy: FederationPrivacy | None = None
    strategy: str | None = None
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    over_select: float = 1.0
    min_replies: int = 1
    tags: Path | None = None
    select: tuple[str, ...] = ()
    compression: str | None = None
    top_k: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rounds", "min_devices", "max_examples", "min_replies"):
            _at_least_one(name, getattr(self, name))
        for name in ("cohort_size", "epochs", "batch_size"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for name in ("learning_rate", "deadline_s", "wait_s", "max_update_norm"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.secure is not None:
            self._check_secure(self.secure)
        if self.privacy is not None or self.secure is not None:
            self._check_protected()
        if self.feedback is not None and not self.feedback.parent.is_dir():
            raise ServeConfigError(f"feedback is {self.feedback}, in a folder that does not exist")
        if not 0 <= self.port <= 65535:
            raise ServeConfigError(f"port is {self.port}; it must lie in 0..65535")
        if not self.trusted_keys:
            raise ServeConfigError(
                "trusted_keys is empty; name the bundle's publisher (--trusted-key KEY.pub.pem)"
            )
        if isinstance(self.tls, str) and self.tls not in ("off", "auto"):
            raise ServeConfigError(f"tls is {self.tls!r}; it is off, auto, or three PEM files")
        require_guarded(self.host, tls=self.tls != "off", node_auth=self.node_keys is not None)
        if self.tls == "auto" and is_wildcard(self.host) and not self.tls_names:
            raise ServeConfigError(
                f"host {self.host} names no machine; say by which names or addresses devices dial "
                "it, for the certificate (--tls-name NAME)"
            )
        self._check_cohorts()
        self._check_compression()

    def _check_compression(self) -> None:
        if self.compression is None and self.top_k:
            raise ServeConfigError(f"top_k is {self.top_k}; it goes with --compression top-k")
        if self.compression is not None:
            try:
                Compression(kind=self.compression, top_k=self.top_k)
            except RecordError as error:
                raise ServeConfigError(str(error)) from None

    def _check_cohorts(self) -> None:
        if not (math.isfinite(self.over_select) and 1 <= self.over_select <= MOST_OVER_SELECTION):
            raise ServeConfigError(
                f"over_select is {self.over_select}; it must lie in 1..{MOST_OVER_SELECTION:g}"
            )
        if self.over_select > 1 and self.cohort_size is None:
            raise ServeConfigError(
                f"over_select is {self.over_select}, but a round without cohort_size asks all that "
                "are online; say how many answers it wants (--cohort-size)"
            )
        if self.select and (self.tags is None or self.node_keys is None):
            raise ServeConfigError(
                f"select is {', '.join(self.select)}; tags belong to device keys, so it needs the "
                "file of tags and the keys (--tags FILE --node-keys DIR)"
            )
        if self.strategy is None and self.strategy_options:
            raise ServeConfigError(
                f"strategy_options has {', '.join(self.strategy_options)}, of no strategy; name it "
                "(--strategy)"
            )
        settings = make_settings(self.strategy or "fedavg", self.strategy_options)
        least = max(settings.least, settings.buffering.size if settings.buffering else 0)
        if settings.buffering and self.over_select > 1:
            raise ServeConfigError(
                f"over_select is {self.over_select}, but strategy {self.strategy} waits for "
                "nobody; leave it at 1"
            )
        name, fewest = min(
            ((name, getattr(self, name)) for name in ("cohort_size", "min_devices")),
            key=lambda item: math.inf if item[1] is None else item[1],
        )
        if max(least, self.min_replies) > fewest:
            why = f"strategy {self.strategy} needs {least} answers a round"
            why = why if least >= self.min_replies else f"min_replies is {self.min_replies}"
            raise ServeConfigError(
                f"{why}, but {name} is {fewest}; raise it (--{name.replace('_', '-')})"
            )

    def _check_secure(self, secure: SecureSettings) -> None:
        smallest = min(self.min_devices, self.cohort_size or self.min_devices)
        least = secure.least(smallest)
        if smallest < least:
            raise ServeConfigError(
                f"min_devices is {self.min_devices}, and a secure round needs {least}: raise "
                "--min-devices, or lower --min-live and the devices' own floor"
            )

    def _check_protected(self) -> None:
        """Nothing beside the mean is known, so nothing may need it."""
        by_example = self.secure is None and self.privacy is not None
        if by_example and self.privacy is not None and self.privacy.unit == "example":
            allowed: tuple[str, ...] = tuple(STRATEGIES)
            reads_more = ("qfedavg", "scaffold")
            allowed = tuple(name for name in allowed if name not in reads_more)
        else:
            allowed = OF_THE_MEAN
        if self.strategy not in {*allowed, None}:
            raise ServeConfigError(
                f"strategy is {self.strategy}, which reads more than secure aggregation or privacy "
                f"leaves it: take one of {', '.join(allowed)}"
            )
        if self.compression is not None:
            raise ServeConfigError(
                f"compression is {self.compression}; secure aggregation has its own "
                "(--value-bits), and private updates travel whole: leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ServePaths:
    """The files of a federation, all under its state directory unless the operator moved them."""

    state_dir: Path
    manifest_sha256: str
    name: str
    version: int

    @property
    def checkpoint(self) -> Path:
        """The adapters of the last finished rounds, of every bundle."""
        return self.state_dir / "federation.sqlite3"

    @property
    def plan(self) -> Path:
        """What the ServerApp is told."""
        return self.state_dir / "plan.json"

    @property
    def tls(self) -> Path:
        """The certificates of `tls="auto"`."""
        return self.state_dir / "tls"

    @property
    def improved(self) -> Path:
        """Where the improved bundle goes by default."""
        return self.state_dir / f"{self.name}-{self.version + 1}.rootlet"


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ServeConfigError(f"{name} is {value}; it must be at least 1")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ServeConfigError(f"{name} is {value}; it must be positive and finite")
