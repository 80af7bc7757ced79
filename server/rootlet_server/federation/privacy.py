"""Differential privacy of a federation: what is promised to whom, charged before it is released.

Two units. **Device**: every update is clipped to C, and noise of standard deviation z C is on their
sum, so a device's whole update is hidden. With secure aggregation the devices add the noise
themselves and nobody sees more than the noisy sum; without it the server adds it (*central*), and
is trusted with the updates:

    w <- w + (sum_k min(1, C / ||u_k||) u_k + N_Z(0, (z C)^2)) / n

**Example**: each device trains by DP-SGD, so what it sends is private already, from the server too.

Neighbours, for devices: one device's update is replaced by zero, the number of devices is public.
No amplification by sampling devices is claimed: who was asked is no secret of the server's. A round
is charged for every device, asked or not, before anybody is asked; a round that fails stays
charged. So after a crash epsilon may be counted twice, and is never counted short.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from rootlet.epsilon import in_words
from rootlet.ledger import Ledger, read
from rootlet.privacy_terms import PrivacyTerms
from rootlet.private_round import of_device
from rootlet.secagg.update import clipped, flat, unflat
from rootlet_runtime.private_fit import noise_std, released
from rootlet_runtime.private_report import PrivacySpent
from rootlet_server.errors import FederationError, ServeConfigError
from rootlet_server.federation.checkpoint import Adapter
from rootlet_server.federation.strategies import Update
from rootlet_server.secagg.settings import DistributedNoise

Unit = Literal["device", "example"]
ROUND, RELEASE = "round charged", "adapter released"
FLOAT64_ROUNDING = 2.0**-50


class BudgetSpentError(FederationError):
    """The next round would exceed the budget; nothing of it was asked or released."""


@dataclass(frozen=True, kw_only=True)
class FederationPrivacy:
    """What is promised.

    Attributes:
        unit: Who is protected: a ``device``'s whole update, or an ``example`` on a device.
        max_norm: C: of a device's update, or of an example's gradient.
        noise_multiplier: z.
        epsilon: The budget; a round that would exceed it is not begun.
        delta: Well below one over the number of units.
        sample_rate: q, with which an example enters a step; for examples only.

    Raises:
        ServeConfigError: A value outside its bounds.
    """

    unit: Unit
    max_norm: float
    noise_multiplier: float
    epsilon: float
    delta: float = 1e-5
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.unit not in {"device", "example"}:
            raise ServeConfigError(f"unit is {self.unit!r}; it is device or example")
        for name, low, high in (
            ("max_norm", 1e-6, 1e6),
            ("noise_multiplier", 0.01, 1e4),
            ("epsilon", 1e-6, 1e6),
            ("sample_rate", 1e-9, 1.0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ServeConfigError(f"{name} is {value}; it must lie in {low:g}..{high:g}")
        if not 0 < self.delta < 1:
            raise ServeConfigError(f"delta is {self.delta}; it must lie in 0..1; 1e-5 is usual")
        if self.unit == "device" and self.sample_rate != 1:
            raise ServeConfigError(
                f"sample_rate is {self.sample_rate}; no device is sampled in secret: leave it out"
            )

    @property
    def terms(self) -> PrivacyTerms:
        """What devices are told."""
        return PrivacyTerms(
            unit=self.unit,
            max_norm=self.max_norm,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
        )

    @property
    def distributed(self) -> DistributedNoise | None:
        """The noise that devices add in a secure round; None where it is each example's."""
        if self.unit == "example":
            return None
        return DistributedNoise(clip_norm=self.max_norm, noise_multiplier=self.noise_multiplier)

    def of_round(self, epochs: int) -> PrivacySpent:
        """What one round spends."""
        if self.unit == "device":
            return of_device(self.max_norm, self.noise_multiplier)
        return PrivacySpent(
            steps=math.ceil(epochs / self.sample_rate),
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_norm,
        )


class FederationAccount:
    """The federation's ledger: what was charged and what was released (`rootlet.ledger`).

    Args:
        folder: The state directory.
        privacy: What is promised; None for nothing, and then rounds are noted and not charged.

    Raises:
        LedgerError: The ledger is broken, or the disk refuses it.
    """

    def __init__(self, folder: Path, privacy: FederationPrivacy | None) -> None:
        self._ledger, self._privacy = Ledger(folder), privacy
        names = [item.name for item in fields(PrivacySpent)]
        entries = read(folder)
        self._released = {e.fields["adapter_sha256"] for e in entries if e.kind == RELEASE}
        self._spent = [
            PrivacySpent(**{name: entry.fields["mechanism"][name] for name in names})
            for entry in entries
            if entry.kind == ROUND and entry.fields.get("mechanism")
        ]

    def begin(self, round_: int, epochs: int, bundle: str) -> str:
        """Charge a round that is about to begin; returns what all rounds have spent, in words.

        Raises:
            BudgetSpentError: It would exceed the budget; nothing was charged.
            LedgerError: The disk refuses the ledger: the round must not begin.
        """
        from rootlet_server.privacy.accounting import epsilon_by_rdp  # noqa: PLC0415

        privacy = self._privacy
        if privacy is None:
            return ""
        spent = privacy.of_round(epochs)
        total = self.require(round_, spent)
        self._ledger.append(
            ROUND,
            round=round_,
            bundle=bundle,
            mechanism=asdict(spent),
            epsilon=round(total, 4),
            epsilon_by_renyi=round(epsilon_by_rdp(self._of(spent), privacy.delta), 4),
            delta=privacy.delta,
            unit=spent.unit,
            neighbours=spent.neighbours,
        )
        self._spent.append(spent)
        return in_words(total, privacy.delta, spent.unit, spent.neighbours)

    def require(self, round_: int, spent: PrivacySpent) -> float:
        """What all rounds and this one would have spent.

        Raises:
            BudgetSpentError: It is above the budget.
        """
        privacy = self._privacy
        if privacy is None:
            return 0.0
        total = self.epsilon(spent)
        if total > privacy.epsilon:
            told = in_words(total, privacy.delta, spent.unit, spent.neighbours)
            raise BudgetSpentError(
                f"round {round_} would bring the federation to {told}, above the budget of "
                f"{privacy.epsilon:g}; {self.epsilon():.3g} is spent: nothing more is released"
            )
        return total

    def release(self, round_: int, adapter: Adapter, devices: int, protection: str) -> None:
        """Note an adapter that devices will see."""
        digest = _digest(adapter)
        self._released.add(digest)
        self._ledger.append(
            RELEASE,
            round=round_,
            devices=devices,
            adapter_sha256=digest,
            protection=protection or "none",
        )

    def reconcile(self, round_: int, adapter: Adapter) -> None:
        """Note the last saved adapter, if a crash came between its saving and its note."""
        digest = _digest(adapter)
        if round_ and digest not in self._released:
            self._ledger.append(
                RELEASE, round=round_, devices=None, adapter_sha256=digest,
                protection="as its round was charged; noted after a crash",
            )  # fmt: skip
            self._released.add(digest)

    def epsilon(self, more: PrivacySpent | None = None) -> float:
        """Of all rounds so far, and one more."""
        from rootlet_server.privacy.accounting import epsilon  # noqa: PLC0415

        charged = self._of(more)
        if not charged or self._privacy is None:
            return 0.0
        return epsilon(charged, self._privacy.delta)

    def _of(self, more: PrivacySpent | None) -> list[PrivacySpent]:
        unit = self._privacy.unit if self._privacy else ""
        every = [*self._spent, more] if more else self._spent
        merged: dict[PrivacySpent, int] = {}
        for each in (item for item in every if item.unit == unit):
            one = PrivacySpent(**{**asdict(each), "steps": 1})
            merged[one] = merged.get(one, 0) + each.steps
        return [PrivacySpent(**{**asdict(each), "steps": steps}) for each, steps in merged.items()]


def _digest(adapter: Adapter) -> str:
    return hashlib.sha256(flat(adapter).tobytes()).hexdigest()


def noisy_mean(received: Adapter, updates: Sequence[Update], privacy: FederationPrivacy) -> Update:
    """The mean of clipped updates with central noise, as the one answer that a strategy gets.

    The sum is in float64 on a grid far below the noise, whose draws are exact on it
    (`rootlet_runtime.noise`); what adding in float64 can move it is in the sensitivity.
    """
    base = flat(received)
    changes = [clipped(flat(item.trained) - base, privacy.max_norm) for item in updates]
    total = np.sum(changes, axis=0)
    change = privacy.max_norm * (1 + len(changes) * FLOAT64_ROUNDING)
    std = noise_std(privacy.noise_multiplier, change, len(base))
    noisy = released({"sum": total}, std)["sum"]
    moved = unflat(base + noisy / len(updates), received)
    return Update(node=0, received=received, trained=moved, num_examples=1, loss=0.0)
