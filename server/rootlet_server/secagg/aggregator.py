"""The server's side of one secure round, stage by stage (`rootlet.secagg.device`).

    sum_{i there} q_i = sum_{i there} y_i - sum_{i there} PRG(b_i)
                        - sum_{i there, j lost} (1 if i < j else -1) PRG(s_ij)     mod 2^m

What a device sends is checked when it comes; a device that is wrong is lost to the round, and the
round goes on without it. Nothing is decided here that a device must trust: it checks for itself.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rootlet.secagg import keys, shamir
from rootlet.secagg.enrolment import verified
from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.masks import Words, add_masks
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.quantise import signed
from rootlet.secagg.roster import Advertisement, Roster, live_statement, to_bitmap
from rootlet_server.errors import FederationError

MOST_DRAWS = 64
"""Choices of shares drawn for one secret, once none that leaves out a single holder gave it."""


class SecureRoundFailedError(FederationError):
    """A secure round that ended without a sum; nothing but its being tried was learnt."""


class SecureReplyError(SecureRoundRefusedError):
    """A device's message that does not follow the protocol; the round goes on without it."""


class SecureAggregator:
    """One round.

    Args:
        plan: Its parameters.
        authorities: Public keys of the enrolment authority. The server's check spares devices a
            round that they would refuse; they do not rely on it.
    """

    def __init__(self, plan: SecurePlan, authorities: Sequence[Ed25519PublicKey]) -> None:
        self.plan = plan
        self._authorities = authorities
        self._advertised: dict[bytes, Advertisement] = {}
        self._sealed: dict[int, Mapping[int, bytes]] = {}
        self._total: Words = np.zeros(plan.values, plan.dtype)
        self._uploaded: set[int] = set()
        self._live_bits = b""
        self._signatures: dict[int, bytes] = {}
        self._seeds: dict[int, dict[int, bytes]] = {}
        self._masks: dict[int, dict[int, bytes]] = {}
        self._answered: set[int] = set()

    # -- advertise -------------------------------------------------------------------------------

    def add_advertisement(self, raw: bytes) -> bytes:
        """Take a device's keys; returns its id.

        Raises:
            SecureReplyError: Not enrolled, not signed, or a second time.
        """
        try:
            advertisement = Advertisement.parse(raw)
            device = advertisement.check(self.plan, self._authorities).device
        except SecureRoundRefusedError as error:
            raise SecureReplyError(str(error)) from error
        if device in self._advertised:
            raise SecureReplyError(f"device {device.hex()[:16]}… has advertised twice")
        self._advertised[device] = advertisement
        return device

    def close_roster(self) -> Roster:
        """The roster of all that advertised.

        Raises:
            SecureRoundFailedError: They are too few, or too many.
        """
        try:
            self.roster = Roster.of(self.plan, self._advertised)
        except SecureRoundRefusedError as error:
            raise SecureRoundFailedError(f"round {self.plan.run}: {error}") from error
        return self.roster

    def place(self, device: bytes) -> int:
        """A device's place in the roster."""
        return self.roster.ids.index(device)

    def peers(self, place: int) -> dict[int, bytes]:
        """The advertisements of a device's neighbours."""
        ids = self.roster.ids
        return {j: self._advertised[ids[j]].raw for j in self.roster.neighbours[place]}

    # -- share, upload ---------------------------------------------------------------------------

    def add_shares(self, place: int, sealed: Mapping[int, bytes]) -> None:
        """Take a device's encrypted shares for its neighbours.

        Raises:
            SecureReplyError: Not one for each neighbour, or of a wrong size.
        """
        if tuple(sorted(sealed)) != self.roster.neighbours[place] or any(
            len(each) != keys.SEALED_BYTES for each in sealed.values()
        ):
            raise SecureReplyError(f"device {place} has not sent a share to each neighbour")
        self._sealed[place] = sealed

    def inbox(self, place: int) -> dict[int, bytes]:
        """The shares meant for a device, of all neighbours that have sent theirs."""
        around = self.roster.neighbours[place]
        return {j: self._sealed[j][place] for j in around if j in self._sealed}

    @property
    def sharers(self) -> list[int]:
        """The devices that may upload: those that shared, sorted."""
        return sorted(self._sealed)

    def add_upload(self, place: int, masked: npt.NDArray[Any]) -> None:
        """Add a masked update; it is forgotten at once.

        Raises:
            SecureReplyError: Of another shape or type, of a device that did not share, or twice.
        """
        if place not in self._sealed or place in self._uploaded or self._live_bits:
            raise SecureReplyError(f"device {place} uploads out of turn")
        if masked.shape != self._total.shape or masked.dtype != self._total.dtype:
            raise SecureReplyError(
                f"the masked update is {masked.dtype}{list(masked.shape)}; expected "
                f"{self._total.dtype}{list(self._total.shape)}"
            )
        self._total += masked
        self._uploaded.add(place)

    # -- confirm, unmask -------------------------------------------------------------------------

    def close_live(self) -> bytes:
        """The set of devices whose updates are in the sum, as a bitmap.

        Raises:
            SecureRoundFailedError: Too few are left, of all or around one of them.
        """
        live = self._uploaded
        if len(live) < self.plan.min_live:
            raise SecureRoundFailedError(
                f"round {self.plan.run}: {len(live)} devices are left, and {self.plan.min_live} "
                "are needed; nothing was unmasked"
            )
        self._check_holders("are left", live)
        self._live_bits = to_bitmap(sorted(live), len(self.roster.ids))
        return self._live_bits

    @property
    def live_bits(self) -> bytes:
        """What `close_live` returned."""
        return self._live_bits

    @property
    def live(self) -> list[int]:
        """The places in the sum, sorted."""
        return sorted(self._uploaded)

    @property
    def confirmed(self) -> list[int]:
        """The places that have signed the live set, sorted."""
        return sorted(self._signatures)

    def add_confirmation(self, place: int, signature: bytes) -> None:
        """Take a device's signature over the live set.

        Raises:
            SecureReplyError: It is not valid, or the device is not in the set.
        """
        statement = live_statement(self.roster, self._live_bits)
        if place not in self._uploaded or not verified(
            self.roster.ids[place], signature, statement
        ):
            raise SecureReplyError(f"device {place} has not signed the live set")
        self._signatures[place] = signature

    def signatures(self, place: int) -> dict[int, bytes]:
        """What a device needs to unmask: as many of its neighbours' signatures as make t."""
        around = (j for j in self.roster.neighbours[place] if j in self._signatures)
        needed = itertools.islice(around, self.roster.threshold - 1)
        return {j: self._signatures[j] for j in needed}

    def add_unmasking(self, place: int, shares: Mapping[int, tuple[str, bytes]]) -> None:
        """Take the shares that a device gives out.

        Raises:
            SecureReplyError: Of devices that it holds nothing of, of the wrong secret, or twice.
        """
        if place in self._answered or place not in self._uploaded:
            raise SecureReplyError(f"device {place} unmasks out of turn")
        around = {*self.roster.neighbours[place], place}
        for j, (kind, share) in shares.items():
            wanted = "seed" if j in self._uploaded else "mask"
            if j not in around or kind != wanted or len(share) != shamir.SHARE_BYTES:
                raise SecureReplyError(f"device {place} gives out what nobody asked of it")
        self._answered.add(place)
        for j, (kind, share) in shares.items():
            held = self._seeds if kind == "seed" else self._masks
            held.setdefault(j, {})[place + 1] = share

    def result(self) -> npt.NDArray[np.int64]:
        """The sum of the live devices' whole numbers, [d].

        Raises:
            SecureRoundFailedError: Too few shares came, or too many of them are wrong.
        """
        self._check_holders("gave out their shares", self._answered)
        context, roster, streams = self.roster.digest, self.roster, []
        for i in self.live:
            commitment = self._advertised[roster.ids[i]].commitment
            seed = self._secret(i, self._seeds.get(i, {}), partial(_commits, commitment))
            streams.append((keys.derive(seed, b"self", context, i), -1))
        for j in self.sharers:
            if j in self._uploaded:
                continue
            public = self._advertised[roster.ids[j]].mask_key
            secret = self._secret(j, self._masks.get(j, {}), partial(_is_private_of, public))
            lost = X25519PrivateKey.from_private_bytes(secret)
            for i in roster.neighbours[j]:
                if i in self._uploaded:
                    other = self._advertised[roster.ids[i]].mask_key
                    key = keys.derive(keys.agree(lost, other), b"mask", context, i, j)
                    streams.append((key, -1 if i < j else 1))
        add_masks(self._total, streams, self.plan.stream)
        return signed(self._total)

    def _secret(
        self, owner: int, shares: Mapping[int, bytes], right: Callable[[bytes], bool]
    ) -> bytes:
        """The secret that `right` accepts, by leaving out shares that may be wrong."""
        threshold = self.roster.threshold
        if len(shares) < threshold:
            raise SecureRoundFailedError(
                f"round {self.plan.run}: {len(shares)} shares of device {owner} came, and "
                f"{threshold} are needed"
            )
        for points in _choices(sorted(shares), threshold):
            try:
                secret = shamir.combine({x: shares[x] for x in points})
            except ValueError:
                continue
            if right(secret):
                return secret
        raise SecureRoundFailedError(
            f"round {self.plan.run}: the shares of device {owner} do not give its secret; "
            "several devices sent wrong ones"
        )

    def _check_holders(self, what: str, there: set[int]) -> None:
        for i in self._uploaded:
            around = sum(j in there for j in (*self.roster.neighbours[i], i))
            if around < self.roster.threshold:
                raise SecureRoundFailedError(
                    f"round {self.plan.run}: {around} of the devices that hold the shares of "
                    f"device {i} {what}, and {self.roster.threshold} are needed"
                )


def _choices(points: list[int], threshold: int) -> Iterator[Sequence[int]]:
    """The first t shares, t without each of them (which leaves any one liar out), then any t."""
    yield points[:threshold]
    if len(points) == threshold:
        return
    for left_out in range(threshold):
        yield [*points[:left_out], *points[left_out + 1 : threshold + 1]]
    draw = random.Random(0)  # noqa: S311 (which wrong shares are left out is no secret)
    for _ in range(MOST_DRAWS):
        yield draw.sample(points, threshold)


def _commits(commitment: bytes, seed: bytes) -> bool:
    return hashlib.sha256(seed).digest() == commitment


def _is_private_of(public: bytes, secret: bytes) -> bool:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == public
