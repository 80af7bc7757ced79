"""What `rootlet serve` tells its ServerApp: one JSON file, by whose path the run is configured."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rootlet.compression import Compression
from rootlet_runtime.durable import write_atomically
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.privacy import FederationPrivacy
from rootlet_server.secagg.settings import SecureSettings


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """The rounds to run and where their files are.

    Attributes:
        bundle: Name of the bundle that the devices hold.
        bundle_version: Its version.
        manifest_sha256: SHA-256 of its manifest, in hexadecimal.
        task: `classification` or `regression`.
        rounds: The last round.
        min_devices: Devices that must be online before a round starts.
        cohort_size: Devices asked in a round, or None for all that are online.
        epochs: Passes over a device's examples in a round.
        batch_size: Examples in a step.
        learning_rate: Step size.
        deadline_s: How long a round waits for answers, in seconds.
        wait_s: How long a round waits for `min_devices`, in seconds.
        max_examples: The largest number of examples by which one device may weigh.
        checkpoint_path: The adapter to start from, and where each round's adapter is saved.
        events_path: The event log.
        bundle_path: The bundle, read only where there is evaluation data or feedback.
        trusted_keys: Ed25519 public keys (hexadecimal) for `bundle_path`.
        evaluate_path: `.npz` with `x` and `y` that the server evaluates on, or None.
        feedback_path: A refreshed feedback, read again before every round, or None.
        max_update_norm: The Euclidean length beyond which an update is left out.
        secure: Secure aggregation of every round, or None.
        privacy: Differential privacy and its budget, or None.
        strategy: How answers become the next adapter, by its name in `STRATEGIES`.
        strategy_options: Its options.
        over_select: How many times `cohort_size` are asked; the round ends with the first
            `cohort_size` answers.
        min_replies: Answers below which a round is repeated.
        nodes: The nodes that may be asked, or None for all.
        compression: How updates travel, or None for whole adapters.
        top_k: Share of the values that `top-k` sends.
    """

    bundle: str
    bundle_version: int
    manifest_sha256: str
    task: str
    rounds: int
    min_devices: int
    cohort_size: int | None
    epochs: int
    batch_size: int
    learning_rate: float
    deadline_s: float
    wait_s: float
    max_examples: int
    checkpoint_path: Path
    events_path: Path
    bundle_path: Path
    trusted_keys: tuple[str, ...]
    evaluate_path: Path | None = None
    feedback_path: Path | None = None
    max_update_norm: float = 1e4
    secure: SecureSettings | None = None
    privacy: FederationPrivacy | None = None
    strategy: str = "fedavg"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    over_select: float = 1.0
    min_replies: int = 1
    nodes: tuple[int, ...] | None = None
    compression: str | None = None
    top_k: float = 0.0

    @property
    def smaller(self) -> Compression | None:
        """How updates travel, or None for whole adapters."""
        if self.compression is None:
            return None
        return Compression(kind=self.compression, top_k=self.top_k)

    @property
    def metric(self) -> str:
        """What the devices measure: `accuracy` or, for regression, `error`."""
        return "accuracy" if self.task == "classification" else "error"

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        text = json.dumps(asdict(self), default=str, indent=2).encode()
        write_atomically(path, text)

    @classmethod
    def load(cls, path: Path) -> "FederationPlan":
        """Read a plan.

        Raises:
            ServeConfigError: the file is not a plan.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
            for name in ("checkpoint_path", "events_path", "bundle_path"):
                values[name] = Path(values[name])
            for name in ("evaluate_path", "feedback_path"):
                if values.get(name) is not None:
                    values[name] = Path(values[name])
            values["trusted_keys"] = tuple(values["trusted_keys"])
            if (secure := values.get("secure")) is not None:
                authorities = tuple(secure["authorities"])
                values["secure"] = SecureSettings(**{**secure, "authorities": authorities})
            if (privacy := values.get("privacy")) is not None:
                values["privacy"] = FederationPrivacy(**privacy)
            if values.get("nodes") is not None:
                values["nodes"] = tuple(values["nodes"])
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ServeConfigError(
                f"{path} is not a federation plan ({error}); `rootlet serve` writes one a run"
            ) from None
