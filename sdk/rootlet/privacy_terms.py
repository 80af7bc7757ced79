"""Differential privacy in a round: what a server asks for, and what a device allows.

A ``train`` request with the record ``privacy`` is answered with the adapter alone: no loss, no
count, no time. The unit says who is protected:

* ``example``: the device trains by DP-SGD (`rootlet_runtime.private_fit`) on secret Poisson samples
  of its own, and divides by the batch size that it was told, never by one that it counted.
* ``device``: the device clips its whole update; the noise is the server's, who is trusted with it.
  (Noise of the devices themselves comes with secure aggregation, `rootlet.secagg.update`.)
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from rootlet import ledger
from rootlet.epsilon import epsilon_at_most, in_words
from rootlet.errors import ConfigError, RequestRefusedError
from rootlet.fleet.records import ArrayRecord, ConfigRecord, MetricRecord, Records
from rootlet.protocol import Arrays
from rootlet.record_checks import require
from rootlet_runtime.private_report import PrivacySpent

PRIVACY = "privacy"
UNITS = ("example", "device")
MECHANISM = "mechanism"
_FIELDS = [field.name for field in fields(PrivacySpent)]


@dataclass(frozen=True, kw_only=True)
class PrivacyTerms:
    """What a server asks for.

    Attributes:
        unit: ``example`` or ``device``.
        max_norm: C: of an example's gradient, or of a device's whole update.
        noise_multiplier: The noise's standard deviation over the sensitivity.
        sample_rate: Probability with which an example enters a step; 1 for devices.
    """

    unit: str
    max_norm: float
    noise_multiplier: float
    sample_rate: float

    def __post_init__(self) -> None:
        require(self.unit in UNITS, "unit", self.unit, f"one of {', '.join(UNITS)}")
        for name, low, high in (
            ("max_norm", 1e-6, 1e6),
            ("noise_multiplier", 0.01, 1e4),
            ("sample_rate", 1e-9, 1.0),
        ):
            value = getattr(self, name)
            held = math.isfinite(value) and low <= value <= high
            require(held, name, value, f"{low:g} to {high:g}")

    def to_records(self) -> Records:
        """What the request carries."""
        return {PRIVACY: ConfigRecord(asdict(self))}

    @classmethod
    def of(cls, records: Mapping[str, Mapping[str, Any]]) -> Self | None:
        """The terms of a request; None where there are none.

        Raises:
            RecordError: Malformed, or out of bounds.
        """
        if PRIVACY not in records:
            return None
        record = dict(records[PRIVACY])
        kinds = {"unit": str, "max_norm": float, "noise_multiplier": float, "sample_rate": float}
        require(set(record) == set(kinds), PRIVACY, sorted(record), f"{', '.join(kinds)}")
        for name, kind in kinds.items():
            require(type(record[name]) is kind, name, record[name], f"of type {kind.__name__}")
        return cls(**record)


@dataclass(frozen=True, kw_only=True)
class PrivacyPolicy:
    """What a device allows.

    Attributes:
        max_epsilon: The most that may be spent in all, of each unit; None for no bound.
        delta: At which epsilon is told and bounded.
        min_noise_multiplier: Least noise of a private round.

    Raises:
        ConfigError: A value outside its bounds.
    """

    max_epsilon: float | None = None
    delta: float = 1e-5
    min_noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1 or not self.min_noise_multiplier >= 0:
            raise ConfigError(
                f"delta {self.delta}, min_noise_multiplier {self.min_noise_multiplier}: must lie "
                "in 0..1, and be at least 0"
            )
        if self.max_epsilon is not None and not self.max_epsilon > 0:
            raise ConfigError(f"max_epsilon is {self.max_epsilon}; it must be positive")


class PrivacyAccount:
    """What this device has spent, by its own ledger; it outlives the process where that does.

    Args:
        policy: What is allowed.
        folder: Of the ledger; None to begin with nothing.

    Raises:
        LedgerError: The ledger is broken.
    """

    def __init__(self, policy: PrivacyPolicy, folder: Path | None = None) -> None:
        self.policy = policy
        entries = [] if folder is None else ledger.read(folder)
        self._spent = [
            PrivacySpent(**{name: entry.fields[MECHANISM][name] for name in _FIELDS})
            for entry in entries
            if MECHANISM in entry.fields
        ]

    def require(self, planned: PrivacySpent) -> None:
        """Refuse what is beyond the policy, before anything is trained.

        Raises:
            RequestRefusedError: The value, the bound and what has been spent.
        """
        policy = self.policy
        if planned.noise_multiplier < policy.min_noise_multiplier:
            raise RequestRefusedError(
                f"noise_multiplier is {planned.noise_multiplier:g}; this device asks for "
                f"{policy.min_noise_multiplier:g} at least"
            )
        if policy.max_epsilon is None:
            return
        total = self._epsilon(planned)
        if total > policy.max_epsilon:
            told = in_words(total, policy.delta, planned.unit, planned.neighbours)
            raise RequestRefusedError(
                f"this round would bring the device to {told}, above its {policy.max_epsilon:g}: "
                "its budget is spent"
            )

    def charged(self, spent: PrivacySpent) -> dict[str, Any]:
        """Count what is about to leave; returns what the ledger says of it."""
        total = self._epsilon(spent)
        self._spent.append(spent)
        return {
            "epsilon": round(total, 4),
            "delta": self.policy.delta,
            "unit": spent.unit,
            "neighbours": spent.neighbours,
            MECHANISM: asdict(spent),
        }

    def _epsilon(self, more: PrivacySpent) -> float:
        same = [each for each in (*self._spent, more) if each.unit == more.unit]
        return epsilon_at_most(same, self.policy.delta)


def private_reply(adapter: Arrays) -> Records:
    """An adapter, and nothing that tells of the examples behind it."""
    size = sum(array.nbytes for array in adapter.values())
    return {"arrays": ArrayRecord(adapter), "metrics": MetricRecord({"bytes_up": size})}
