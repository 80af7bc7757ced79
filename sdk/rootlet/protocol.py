"""What rootlet says inside a Flower message: requests, replies and their records.

`docs/architecture.md`, contract 3, has the table. Every value is checked when it is made, and
`from_records` refuses records, names and types beyond those of the table, so that both sides work
with values that make sense.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from rootlet import feedback_record
from rootlet.compression import UPDATE, Compression
from rootlet.feedback_record import FEEDBACK, MAX_FEEDBACK_BYTES, MAX_VERSION
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord, Records
from rootlet.record_checks import (
    PROTOCOL_VERSION,
    check_adapter,
    check_config,
    check_names,
    require,
)

TRAIN, EVALUATE = "train", "evaluate"
CONTROL = "control"
"""The record of SCAFFOLD's control variates."""
METRICS = ("accuracy", "error")
"""What a model is measured by: accuracy for classification, mean squared error for regression."""

ERROR_REFUSED = 1001
"""The device does not accept the request (another bundle, beyond its bounds, unknown type)."""
ERROR_FAILED = 1002
"""The device accepted the request and could not fulfil it."""
ERROR_MALFORMED = 1003
"""The request could not be read."""

MAX_NAME = 200
MAX_MU = 1e6
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUNDLE_KEYS = {
    "protocol": int,
    "bundle": str,
    "bundle_version": int,
    "manifest_sha256": str,
    "round": int,
}
_VERSION = "feedback_version"
_TRAINED = ("loss", "train_s", "energy_estimated_j", "bytes_down", "bytes_up")
_INTEGERS = {"num-examples", "bytes_down", "bytes_up", _VERSION}
_TRAIN_KEYS = {**_BUNDLE_KEYS, "epochs": int, "batch_size": int, "learning_rate": float}

_TRAIN_OPTIONS = {"proximal_mu": float, "compression": str, "top_k": float}

Arrays = Mapping[str, np.ndarray]
AnyRecords = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateRequest:
    """Measure this adapter on your held-out examples.

    Attributes:
        adapter: float32 arrays by adapter name.
        bundle: Name of the bundle that the adapter belongs to.
        bundle_version: Its version.
        manifest_sha256: Its identity: SHA-256 of the manifest, in hex.
        round: Round of the federation, from 1; 0 before the first.
    """

    adapter: Arrays
    bundle: str
    bundle_version: int
    manifest_sha256: str
    round: int

    def __post_init__(self) -> None:
        check_adapter(self.adapter)
        require(0 < len(self.bundle) <= MAX_NAME, "bundle", self.bundle, "1 to 200 characters")
        require(self.bundle_version >= 1, "bundle_version", self.bundle_version, "at least 1")
        require(
            _SHA256.fullmatch(self.manifest_sha256) is not None,
            "manifest_sha256",
            self.manifest_sha256,
            "64 lower-case hex digits",
        )
        require(self.round >= 0, "round", self.round, "at least 0")

    def to_records(self) -> Records:
        """Return the content of the message."""
        return {"arrays": ArrayRecord(self.adapter), "config": ConfigRecord(self._config())}

    @classmethod
    def from_records(cls, records: AnyRecords) -> Self:
        """Return the request in the content of a message.

        Raises:
            RecordError: Anything missing, unknown, of the wrong type or out of bounds.
        """
        config = check_config(records, _BUNDLE_KEYS)
        return cls(adapter=dict(records["arrays"]), **config)

    def _config(self) -> dict[str, int | float | str]:
        return {
            "protocol": PROTOCOL_VERSION,
            "bundle": self.bundle,
            "bundle_version": self.bundle_version,
            "manifest_sha256": self.manifest_sha256,
            "round": self.round,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRequest(EvaluateRequest):
    """Train this adapter on your examples.

    Attributes:
        epochs: Passes over the examples.
        batch_size: Examples of one step.
        learning_rate: Step size.
        feedback: A refreshed feedback to learn by, as its publisher signed it; empty for none.
        proximal_mu: How strongly the adapter is held near the received one (FedProx, Li et al.
            2020): after each step, ``w <- w_received + (w - w_received) / (1 + rate proximal_mu)``.
            0, which is not sent, for not at all.
        compression: How the update shall travel; None, which is not sent, for the adapter itself.
        control: SCAFFOLD's mean control variate, by adapter name; empty for none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    feedback: bytes = b""
    proximal_mu: float = 0.0
    compression: Compression | None = None
    control: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        size = len(self.feedback)
        require(size <= MAX_FEEDBACK_BYTES, "feedback", size, f"{MAX_FEEDBACK_BYTES} bytes or less")
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        positive = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(positive, "learning_rate", self.learning_rate, "positive and finite")
        mu = self.proximal_mu
        require(math.isfinite(mu) and 0 <= mu <= MAX_MU, "proximal_mu", mu, f"0 to {MAX_MU:g}")
        if self.control:
            check_adapter(self.control)
            require(not mu, "proximal_mu", mu, "0 with control variates")

    def to_records(self) -> Records:
        """Return the content of the message."""
        part = {FEEDBACK: feedback_record.to_record(self.feedback)} if self.feedback else {}
        control = {CONTROL: ArrayRecord(self.control)} if self.control else {}
        return {**super().to_records(), **part, **control}

    @classmethod
    def from_records(cls, records: AnyRecords) -> Self:
        """Return the request in the content of a message.

        Raises:
            RecordError: Anything missing, unknown, of the wrong type or out of bounds.
        """
        record = records.get(FEEDBACK)
        plain = {k: v for k, v in records.items() if k not in {FEEDBACK, CONTROL}}
        config = check_config(plain, _TRAIN_KEYS, _TRAIN_OPTIONS)
        part = b"" if record is None else feedback_record.from_record(record)
        kind, top_k = config.pop("compression", None), config.pop("top_k", 0.0)
        require(kind is not None or not top_k, "top_k", top_k, "0 without compression")
        smaller = None if kind is None else Compression(kind=kind, top_k=top_k)
        adapter = dict(records["arrays"])
        control = dict(records.get(CONTROL, {}))
        return cls(adapter=adapter, feedback=part, compression=smaller, control=control, **config)

    def _config(self) -> dict[str, int | float | str]:
        top_k = 0.0 if self.compression is None else float(self.compression.top_k)
        return {
            **super()._config(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": float(self.learning_rate),
            **({"proximal_mu": float(self.proximal_mu)} if self.proximal_mu else {}),
            **({} if self.compression is None else {"compression": self.compression.kind}),
            **({"top_k": top_k} if top_k else {}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateReply:
    """How good the received adapter is.

    Attributes:
        metric: `accuracy` or `error`.
        num_examples: Examples measured on.
        loss: Mean loss of the received adapter.
        received: The metric of the received adapter.
    """

    metric: str
    num_examples: int
    loss: float
    received: float

    def __post_init__(self) -> None:
        require(self.metric in METRICS, "metric", self.metric, f"one of {METRICS}")
        require(self.num_examples >= 1, "num-examples", self.num_examples, "at least 1")
        for name, value in self._numbers().items():
            require(math.isfinite(value), name, value, "finite")

    def to_records(self) -> Records:
        """Return the content of the message."""
        return {"metrics": MetricRecord({"num-examples": self.num_examples, **self._numbers()})}

    @classmethod
    def from_records(cls, records: AnyRecords) -> Self:
        """Return the reply in the content of a message.

        Raises:
            RecordError: Anything missing, unknown, of the wrong type or out of bounds.
        """
        check_names("records", records, {"metrics"})
        return cls(**_metrics(records["metrics"], ("received",), ("loss",)))

    def _numbers(self) -> dict[str, float]:
        return {"loss": self.loss, f"{self.metric}_received": self.received}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainReply(EvaluateReply):
    """A trained adapter, and what it took.

    Attributes:
        adapter: float32 arrays by adapter name; not sent where there is an `update`.
        num_examples: Examples trained on: the adapter's weight in the average.
        loss: Mean loss over the last epoch.
        trained: The metric of the trained adapter, on the examples that `received` is measured on.
        train_s: Seconds of training.
        energy_estimated_j: Estimated energy of training and measuring, in joules.
        bytes_down: Bytes of the request's objects.
        bytes_up: Bytes of the objects that carry the adapter.
        feedback_version: Of the refreshed feedback that the device keeps; 0, which is not sent,
            for none.
        update: Trained minus received, as the request's compression encodes it; empty for none.
        control: What changed in the device's control variate; empty for none.
    """

    adapter: Arrays
    trained: float
    train_s: float
    energy_estimated_j: float
    bytes_down: int
    bytes_up: int
    feedback_version: int = 0
    update: Arrays = field(default_factory=dict)
    control: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.update:
            check_adapter(self.adapter)
        for name in ("train_s", "energy_estimated_j", "bytes_down", "bytes_up"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        version = self.feedback_version
        require(0 <= version <= MAX_VERSION, _VERSION, version, f"0 to {MAX_VERSION}")

    def to_records(self) -> Records:
        """Return the content of the message."""
        name, arrays = (UPDATE, self.update) if self.update else ("arrays", self.adapter)
        control = {CONTROL: ArrayRecord(self.control)} if self.control else {}
        return {name: ArrayRecord(arrays), **control, **super().to_records()}

    @classmethod
    def from_records(cls, records: AnyRecords) -> Self:
        """Return the reply in the content of a message.

        Raises:
            RecordError: Anything missing, unknown, of the wrong type or out of bounds.
        """
        kind = UPDATE if UPDATE in records else "arrays"
        control = {CONTROL} & set(records)
        check_names("records", records, {kind, "metrics", *control})
        values = _metrics(
            records["metrics"],
            ("received", "trained"),
            (*_TRAINED, _VERSION) if _VERSION in records["metrics"] else _TRAINED,
        )
        adapter, update, changed = (
            dict(records.get(name, {})) for name in ("arrays", UPDATE, CONTROL)
        )
        return cls(adapter=adapter, update=update, control=changed, **values)

    def _numbers(self) -> dict[str, float]:
        return {
            **super()._numbers(),
            f"{self.metric}_trained": self.trained,
            "train_s": self.train_s,
            "energy_estimated_j": self.energy_estimated_j,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            **({_VERSION: self.feedback_version} if self.feedback_version else {}),
        }


def _metrics(
    record: Mapping[str, Any], measured: tuple[str, ...], plain: tuple[str, ...]
) -> dict[str, Any]:
    """Return the fields of a reply from its metric record."""
    metric = next((name for name in METRICS if f"{name}_received" in record), METRICS[0])
    fields = {name: name for name in plain} | {f"{metric}_{name}": name for name in measured}
    fields["num-examples"] = "num_examples"
    check_names("metrics", record, set(fields))
    for name in fields:
        integer = name in _INTEGERS
        kinds = (int,) if integer else (int, float)
        require(type(record[name]) in kinds, name, record[name], f"one {kinds[-1].__name__}")
    return {"metric": metric, **{field: record[name] for name, field in fields.items()}}
