"""How a federation's rounds are made secure, and the plan of each round."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.graph import degree_for
from rootlet.secagg.plan import MODULUS_BITS, NoisePlan, SecurePlan
from rootlet.secagg.quantise import largest_value
from rootlet_server.errors import ServeConfigError

MIN_LIVE = 5
HONEST_SHARE = 0.9
"""Of the devices that are sure to remain, the share whose noise is counted on."""


@dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """Noise that the devices themselves add, each a share of it.

    Attributes:
        clip_norm: C, to which a device clips its whole update.
        noise_multiplier: z, what the honest devices' noise is over one device's largest change.
    """

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise ServeConfigError(f"clip_norm is {self.clip_norm}; it must be positive and finite")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ServeConfigError(
                f"noise_multiplier is {self.noise_multiplier}; it must be positive and finite"
            )


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """Secure aggregation of every round.

    Attributes:
        authorities: Public keys of the enrolment authority, 64 hexadecimal digits each.
        value_bits: Of a device's value.
        bound: Where a value saturates, without noise.
        min_live: Fewest devices in a sum, or None for two thirds of the cohort and at least 5.
        group_size: Devices of a group; the server then sees each group's sum and takes the median
            of the groups' means. None for one sum of the whole cohort.
        stage_deadline_s: How long each stage but the training waits for its devices, in seconds.

    Raises:
        ServeConfigError: A value outside its bounds.
    """

    authorities: tuple[str, ...]
    value_bits: int = 16
    bound: float = 4.0
    min_live: int | None = None
    group_size: int | None = None
    stage_deadline_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.authorities:
            raise ServeConfigError(
                "secure aggregation needs an enrolment authority's public key "
                "(--enrolment-authority CA.pub.pem); make one with rootlet enrol authority"
            )
        _within("value_bits", self.value_bits, 2, 24)
        _within("bound", self.bound, 1e-9, 1e9)
        _within("stage_deadline_s", self.stage_deadline_s, 0.1, 86_400)
        if self.min_live is not None:
            _within("min_live", self.min_live, 2, 65_536)
        if self.group_size is not None:
            _within("group_size", self.group_size, self.min_live or MIN_LIVE, 65_536)

    @property
    def keys(self) -> list[Ed25519PublicKey]:
        """The authorities' keys."""
        return [Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in self.authorities]

    def least(self, devices: int) -> int:
        """Fewest devices in a sum of a group of so many."""
        return self.min_live or max(MIN_LIVE, 2 * devices // 3)

    def plan(
        self,
        *,
        run: str,
        manifest_sha256: str,
        values: int,
        devices: int,
        noise: DistributedNoise | None = None,
    ) -> SecurePlan:
        """A round's plan for a group of devices, with the smallest modulus that holds its sum.

        Raises:
            ServeConfigError: The group is too small, or no modulus holds its sum.
        """
        least = self.least(devices)
        if devices < least:
            raise ServeConfigError(
                f"a secure round of {devices} devices, and min_live is {least}: wait for more "
                "(--min-devices), or lower --min-live and the devices' own floor"
            )
        draft: dict[str, Any] = {
            "round_id": os.urandom(16).hex(),
            "run": run,
            "manifest_sha256": manifest_sha256,
            "values": values,
            "devices": devices,
            "min_live": least,
            "degree": max(1, degree_for(devices)),
        }
        reason = ""
        for bits in MODULUS_BITS:
            try:
                if noise is None:
                    return SecurePlan(
                        **draft, value_bits=self.value_bits, modulus_bits=bits, bound=self.bound
                    )
                return _noisy_plan(draft, bits, noise)
            except SecureRoundRefusedError as error:
                reason = str(error)
        raise ServeConfigError(f"no modulus holds the sum of {devices} devices: {reason}")


def _noisy_plan(draft: dict[str, Any], modulus_bits: int, noise: DistributedNoise) -> SecurePlan:
    """The finest grid that leaves room for the cohort's values and noise.

    With honest devices h, a device's noise of 2^b units and the longest rounded update L(s) at s
    units in 1.0, the multiplier is 2^b sqrt(h) / L(s). b is given, and s is what gives it; a value
    after the rotation is about C s / sqrt(d), and its bits leave room for six times as much.
    """
    devices, values = draft["devices"], draft["values"]
    honest = max(1, math.floor(HONEST_SHARE * draft["min_live"]))
    failure: SecureRoundRefusedError | None = None
    for scale_bits in range(20, 1, -1):
        longest = 2**scale_bits * math.sqrt(honest) / noise.noise_multiplier
        units = _units_for(longest, noise.clip_norm, values)
        if units is None:
            continue
        typical = noise.clip_norm * units / math.sqrt(values)
        bits = max(2, math.ceil(math.log2(6 * typical + 2)) + 1)
        if bits > 24 or largest_value(bits) * devices > 2**modulus_bits:
            continue
        try:
            return SecurePlan(
                **draft,
                value_bits=bits,
                modulus_bits=modulus_bits,
                bound=largest_value(bits) / units,
                noise=NoisePlan(
                    clip_norm=noise.clip_norm,
                    scale_bits=scale_bits,
                    unit_inverse=units,
                    honest=honest,
                ),
            )
        except SecureRoundRefusedError as error:
            failure = error
    raise failure or SecureRoundRefusedError(
        f"noise_multiplier {noise.noise_multiplier:g} with {honest} honest devices and {values} "
        f"values does not fit modulus_bits {modulus_bits}: more devices, or fewer values"
    )


def _units_for(longest: float, clip_norm: float, values: int) -> float | None:
    """The largest s at which a rounded update is no longer than ``longest``; None if none is."""
    low, high = 0.0, longest / clip_norm
    probe = NoisePlan(clip_norm=clip_norm, scale_bits=2, unit_inverse=1.0, honest=1)
    if replace(probe, unit_inverse=high * 1e-3).longest(values) > longest:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        if replace(probe, unit_inverse=middle).longest(values) <= longest:
            low = middle
        else:
            high = middle
    return low


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ServeConfigError(f"{name} is {value}; it must lie in {low:g}..{high:g}")
