"""Who takes part in a secure round: signed keys, in one order, known by one hash."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rootlet.secagg import graph
from rootlet.secagg.enrolment import (
    ID_BYTES,
    MAX_CERTIFICATE_BYTES,
    Certificate,
    verified,
)
from rootlet.secagg.errors import EnrolmentError, SecureRoundRefusedError
from rootlet.secagg.keys import DOMAIN
from rootlet.secagg.plan import SecurePlan

KEY_BYTES, SIGNATURE_BYTES, DIGEST_BYTES = 32, 64, 32
_FIXED = 3 * KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, kw_only=True)
class Advertisement:
    """A device's fresh keys for one round.

    Attributes:
        channel_key: X25519 public key by which others encrypt shares to it.
        mask_key: X25519 public key from which pairwise masks are derived.
        commitment: SHA-256 of the seed of its own mask: tells a wrong share later.
        signature: Of the device over the plan and these keys.
        certificate: The enrolment authority's word for the device.
    """

    channel_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes
    certificate: bytes

    @property
    def raw(self) -> bytes:
        """As it travels: the fixed parts one after the other, then the certificate."""
        keys = self.channel_key + self.mask_key + self.commitment
        return keys + self.signature + self.certificate

    @property
    def digest(self) -> bytes:
        """SHA-256 of it."""
        return hashlib.sha256(self.raw).digest()

    @classmethod
    def parse(cls, raw: bytes) -> "Advertisement":
        """Take it apart.

        Raises:
            SecureRoundRefusedError: Too short or too long.
        """
        if not _FIXED < len(raw) <= _FIXED + MAX_CERTIFICATE_BYTES:
            raise SecureRoundRefusedError(f"an advertisement of {len(raw)} bytes is none")
        cuts = (0, 32, 64, 96, _FIXED, len(raw))
        parts = [raw[low:high] for low, high in pairwise(cuts)]
        names = ("channel_key", "mask_key", "commitment", "signature", "certificate")
        return cls(**dict(zip(names, parts, strict=True)))

    @classmethod
    def sign(
        cls,
        key: Ed25519PrivateKey,
        certificate: bytes,
        plan: SecurePlan,
        keys: tuple[bytes, bytes, bytes],
    ) -> "Advertisement":
        """Make one, of the channel key, the mask key and the commitment."""
        names = ("channel_key", "mask_key", "commitment")
        return cls(
            **dict(zip(names, keys, strict=True)),
            signature=key.sign(_statement(plan, b"".join(keys))),
            certificate=certificate,
        )

    def check(
        self,
        plan: SecurePlan,
        authorities: Sequence[Ed25519PublicKey],
        *,
        now: datetime | None = None,
    ) -> Certificate:
        """Verify the certificate and the signature.

        Raises:
            SecureRoundRefusedError: A device that is not enrolled, keys that are not its own or of
                another round.
        """
        try:
            certificate = Certificate.verify(self.certificate, list(authorities), now=now)
        except EnrolmentError as error:
            raise SecureRoundRefusedError(f"a device of the round: {error}") from error
        statement = _statement(plan, self.channel_key + self.mask_key + self.commitment)
        if not verified(certificate.device, self.signature, statement):
            raise SecureRoundRefusedError(
                f"the keys of {certificate.name} are not signed by it for this round"
            )
        return certificate


def _statement(plan: SecurePlan, keys: bytes) -> bytes:
    return DOMAIN + b"advertise" + plan.digest + keys


@dataclass(frozen=True)
class Roster:
    """The devices of a round, sorted by id; a device's place is its index.

    Attributes:
        plan: The round's.
        ids: Identity keys, 32 bytes each.
        digests: Of their advertisements.
    """

    plan: SecurePlan
    ids: tuple[bytes, ...]
    digests: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.digests) or any(len(i) != ID_BYTES for i in self.ids):
            raise SecureRoundRefusedError("the roster's ids and digests do not match")
        if any(a >= b for a, b in pairwise(self.ids)):
            raise SecureRoundRefusedError("the roster holds a device twice, or is not sorted")
        if not self.plan.min_live <= len(self.ids) <= self.plan.devices:
            raise SecureRoundRefusedError(
                f"a roster of {len(self.ids)}; the plan has {self.plan.min_live} to "
                f"{self.plan.devices} devices"
            )
        if self.plan.degree < graph.degree_for(len(self.ids)):
            raise SecureRoundRefusedError(
                f"degree {self.plan.degree} is too few neighbours for {len(self.ids)} devices: "
                f"{graph.degree_for(len(self.ids))} at least"
            )
        if self.plan.degree % 2 and self.plan.degree < len(self.ids) - 1:
            raise SecureRoundRefusedError(
                f"degree {self.plan.degree} is odd: half of the neighbours stand on either side of "
                f"a device; {self.plan.degree + 1} would do"
            )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over the plan, the ids and the advertisements."""
        content = b"".join((self.plan.digest, *self.ids, *self.digests))
        return hashlib.sha256(DOMAIN + b"roster" + content).digest()

    @cached_property
    def neighbours(self) -> list[tuple[int, ...]]:
        """By place."""
        return graph.neighbours(self.digest, len(self.ids), self.plan.degree)

    @property
    def threshold(self) -> int:
        """How many shares give a secret back: t."""
        return self.plan.threshold(len(self.ids))

    @classmethod
    def of(cls, plan: SecurePlan, advertisements: Mapping[bytes, Advertisement]) -> "Roster":
        """The roster of advertisements by id."""
        ids = tuple(sorted(advertisements))
        return cls(plan, ids, tuple(advertisements[i].digest for i in ids))

    @property
    def raw(self) -> bytes:
        """Ids and digests, one after the other, by place."""
        return b"".join(i + d for i, d in zip(self.ids, self.digests, strict=True))

    @classmethod
    def parse(cls, plan: SecurePlan, raw: bytes) -> "Roster":
        """Take it apart.

        Raises:
            SecureRoundRefusedError: Of a wrong size, unsorted, with a device twice, or too small.
        """
        size = ID_BYTES + DIGEST_BYTES
        if len(raw) % size or len(raw) > size * plan.devices:
            raise SecureRoundRefusedError(f"a roster of {len(raw)} bytes is none of this plan")
        rows = [raw[at : at + size] for at in range(0, len(raw), size)]
        return cls(
            plan,
            tuple(row[:ID_BYTES] for row in rows),
            tuple(row[ID_BYTES:] for row in rows),
        )


def live_statement(roster: Roster, live: bytes) -> bytes:
    """What a device signs when it confirms who is still there."""
    return DOMAIN + b"live" + roster.digest + live


def to_bitmap(places: Sequence[int], devices: int) -> bytes:
    """A set of places: bit p of byte p // 8, the lowest first."""
    bits = bytearray(-(-devices // 8))
    for place in places:
        bits[place // 8] |= 1 << place % 8
    return bytes(bits)


def from_bitmap(bits: bytes, devices: int) -> tuple[int, ...]:
    """The places of a bitmap, sorted.

    Raises:
        SecureRoundRefusedError: Of another size, or with a bit beyond the last device.
    """
    if len(bits) != -(-devices // 8):
        raise SecureRoundRefusedError(f"a live set of {len(bits)} bytes for {devices} devices")
    places = tuple(p for p in range(8 * len(bits)) if bits[p // 8] >> p % 8 & 1)
    if places and places[-1] >= devices:
        raise SecureRoundRefusedError(f"the live set names device {places[-1]} of {devices}")
    return places
