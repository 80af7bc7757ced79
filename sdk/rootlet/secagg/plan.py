"""What all devices of a secure round agree on: one JSON document, by whose hash it is known.

Every signature and every key of the round is bound to the exact bytes, so a server that tells two
devices different parameters ends up with a round that nobody can unmask.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.graph import threshold_for
from rootlet.secagg.masks import STREAMS
from rootlet.secagg.quantise import largest_value
from rootlet_runtime import strict_json

SCHEMA = 1
MODULUS_BITS = (16, 32)
MAX_DEVICES, MAX_VALUES, MAX_PLAN_BYTES = 65_536, 2**28, 16_384
TAIL = 9
"""Standard deviations of noise for which the modulus has room; beyond is once in 10^18."""
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """Distributed noise: what each device adds, and what all of it is worth.

    Attributes:
        clip_norm: C, the Euclidean length to which a device clips its whole update.
        scale_bits: b; each device adds a discrete Gaussian of parameter 2^b units.
        unit_inverse: Units in 1.0 of the update: the update is scaled by it before it is rounded.
        honest: Devices whose noise is counted on: those that are sure to remain and to add theirs.
    """

    clip_norm: float
    scale_bits: int
    unit_inverse: float
    honest: int

    def __post_init__(self) -> None:
        for name in ("clip_norm", "unit_inverse"):
            value = getattr(self, name)
            _bounded(name, value, 1e-12, 1e12)
        _bounded("scale_bits", self.scale_bits, 2, 24)
        _bounded("honest", self.honest, 1, MAX_DEVICES)

    def longest(self, values: int) -> float:
        """How long a rounded update of so many values may be, in units (Kairouz et al. 2021, 4.1).

        With c = C unit_inverse and beta = e^(-1/2), rounding is repeated until its length is below

            min(c + sqrt(d), sqrt(c^2 + d/4 + sqrt(2 ln(1/beta)) (c + sqrt(d)/2))).
        """
        c, root = self.clip_norm * self.unit_inverse, math.sqrt(values)
        likely = c * c + values / 4 + c + root / 2
        return min(c + root, math.sqrt(likely))

    def noise_multiplier(self, values: int) -> float:
        """z: the standard deviation of the honest devices' noise over what one device can change.

        Sums of discrete Gaussians of parameter 4 and above differ from one of them by less than
        10 n e^(-16 pi^2) (Kairouz et al. 2021, theorem 1), which no accountant sees.
        """
        return float(2**self.scale_bits * math.sqrt(self.honest) / self.longest(values))


@dataclass(frozen=True, kw_only=True)
class SecurePlan:
    """One round's parameters.

    Attributes:
        schema: 1.
        round_id: 32 hexadecimal digits, drawn anew for every round and group.
        run: The run and the round, for people.
        manifest_sha256: The bundle.
        values: d, the numbers in an update.
        value_bits: Of a device's value, with sign.
        modulus_bits: Of the sum: 16 or 32.
        bound: Where a device's value saturates, in the update's own units; with noise, after the
            rotation.
        devices: The most that may be on the roster.
        min_live: The fewest whose sum may be unmasked.
        degree: k of the graph (`rootlet.secagg.graph`).
        stream: The cipher of the masks.
        noise: Distributed noise, or None for none.

    Raises:
        SecureRoundRefusedError: A value outside its bounds, or a sum that could wrap around.
    """

    schema: int = SCHEMA
    round_id: str
    run: str
    manifest_sha256: str
    values: int
    value_bits: int
    modulus_bits: int
    bound: float
    devices: int
    min_live: int
    degree: int
    stream: str = STREAMS[0]
    noise: NoisePlan | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise SecureRoundRefusedError(f"schema {self.schema}: this version speaks {SCHEMA}")
        for name, digits in (("round_id", 32), ("manifest_sha256", 64)):
            value = getattr(self, name)
            if len(value) != digits or not _HEX.fullmatch(value):
                raise SecureRoundRefusedError(f"{name} {value!r:.80}: {digits} hex digits are due")
        _bounded("values", self.values, 1, MAX_VALUES)
        _bounded("value_bits", self.value_bits, 2, 24)
        if self.modulus_bits not in MODULUS_BITS:
            raise SecureRoundRefusedError(f"modulus_bits {self.modulus_bits}: must be 16 or 32")
        _bounded("bound", self.bound, 1e-12, 1e12)
        _bounded("devices", self.devices, 2, MAX_DEVICES)
        _bounded("min_live", self.min_live, 2, self.devices)
        _bounded("degree", self.degree, 1, MAX_DEVICES)
        if self.stream not in STREAMS:
            raise SecureRoundRefusedError(
                f"stream {self.stream!r:.40}: must be one of {', '.join(STREAMS)}"
            )
        if self.noise is not None and self.noise.honest > self.min_live:
            raise SecureRoundRefusedError(
                f"the noise counts on {self.noise.honest} devices, and only {self.min_live} are "
                "sure to remain"
            )
        if self.largest_sum > 2 ** (self.modulus_bits - 1) - 1:
            raise SecureRoundRefusedError(
                f"a sum of {self.devices} devices at {self.value_bits} bits"
                f"{' and their noise' if self.noise else ''} reaches {self.largest_sum}, and "
                f"modulus_bits {self.modulus_bits} holds {2 ** (self.modulus_bits - 1) - 1}: lower "
                "value_bits, or raise modulus_bits"
            )

    @property
    def largest_sum(self) -> int:
        """What the sum's size cannot exceed: n 2^(bits - 1), and room for the noise."""
        noise = 0
        if self.noise is not None:
            noise = math.ceil(TAIL * math.sqrt(self.devices) * 2**self.noise.scale_bits)
        return self.devices * (largest_value(self.value_bits) + 1) + noise

    @property
    def unit_inverse(self) -> float:
        """Units in 1.0 of an update's value."""
        if self.noise is not None:
            return self.noise.unit_inverse
        return largest_value(self.value_bits) / self.bound

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the masked values."""
        return np.uint16 if self.modulus_bits == MODULUS_BITS[0] else np.uint32

    def threshold(self, devices: int) -> int:
        """t, for a roster of so many."""
        return threshold_for(devices, self.degree)

    @cached_property
    def raw(self) -> bytes:
        """The document as it travels."""
        return strict_json.dumps(self)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the document."""
        return hashlib.sha256(self.raw).digest()

    @classmethod
    def parse(cls, raw: bytes) -> "SecurePlan":
        """Read a plan, in the one encoding that it has.

        Raises:
            SecureRoundRefusedError: It is no plan, or not of this encoding.
        """
        if len(raw) > MAX_PLAN_BYTES:
            raise SecureRoundRefusedError(f"a plan of {len(raw)} bytes; at most {MAX_PLAN_BYTES}")
        try:
            plan = strict_json.decode(strict_json.parse(raw), cls)
        except strict_json.StrictJsonError as error:
            raise SecureRoundRefusedError(f"not a plan of a secure round: {error}") from error
        if plan.raw != raw:
            raise SecureRoundRefusedError("the plan is not in its canonical encoding")
        return plan


def _bounded(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SecureRoundRefusedError(f"{name} {value}: must lie in {low:g}..{high:g}")
