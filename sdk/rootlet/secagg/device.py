"""A device's side of one secure round: five stages, each once, in this order.

    advertise   plan                        -> fresh keys, signed
    share       roster, neighbours' keys    -> shares of two secrets, encrypted to each neighbour
    upload      the shares meant for it     -> the update, as masked whole numbers
    confirm     who is still there          -> its signature over that set
    unmask      the neighbours' signatures  -> for each neighbour one share of one of its secrets

    y_i = q_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)   mod 2^m

over the neighbours j that shared. Of a neighbour that is there the device gives out a share of b,
of one that is lost a share of its mask key, and never both: that is what keeps y_i secret. Whatever
does not follow the protocol ends the round for this device; its secrets then are gone.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rootlet.fleet.records import ConfigRecord
from rootlet.secagg import keys, shamir
from rootlet.secagg.enrolment import Identity, verified
from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.masks import Words, add_masks
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.roster import Advertisement, Roster, from_bitmap, live_statement

STAGES = ("advertise", "share", "upload", "confirm", "unmask", "over")
Shares = tuple[bytes, bytes]
P = ParamSpec("P")
T = TypeVar("T")


def _ending(
    stage: Callable[Concatenate["DeviceRound", P], T],
) -> Callable[Concatenate["DeviceRound", P], T]:
    """A stage whose refusal, wherever it comes from, ends the round for the device."""

    @wraps(stage)
    def guarded(self: "DeviceRound", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return stage(self, *args, **kwargs)
        except SecureRoundRefusedError:
            self._end()
            raise

    return guarded


class DeviceRound:
    """One round, held in memory: a device that restarts is lost to it.

    Those whose process lasts for one message (a stock Flower ClientApp) keep `to_record` between
    two of them, where nobody else can read it.

    Args:
        identity: Who the device is.
        plan: The round's; its policy has agreed.
    """

    def __init__(self, identity: Identity, plan: SecurePlan) -> None:
        self.plan = plan
        self._identity = identity
        self._stage = STAGES[0]
        self._channel, self._mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._own: Advertisement | None = None
        self._peers: dict[int, Advertisement] = {}
        self._channels: dict[int, bytes] = {}
        self._held: dict[int, Shares] = {}
        self._live_bits = b""
        self._roster: Roster | None = None
        self._index = -1

    @property
    def stage(self) -> str:
        """The next stage."""
        return self._stage

    def to_record(self) -> ConfigRecord:
        """All of it, secrets included."""
        places = sorted(self._peers)
        held = sorted(self._held)
        return ConfigRecord(
            stage=self._stage,
            plan=self.plan.raw,
            channel=self._channel.private_bytes_raw(),
            mask=self._mask.private_bytes_raw(),
            seed=self._seed,
            own=b"" if self._own is None else self._own.raw,
            roster=b"" if self._roster is None else self._roster.raw,
            peers=list(places),
            advertisements=[self._peers[place].raw for place in places],
            held=list(held),
            shares=[b"".join(self._held[place]) for place in held],
            live=self._live_bits,
        )

    @classmethod
    def from_record(cls, identity: Identity, record: Mapping[str, Any]) -> "DeviceRound":
        """The round that `to_record` kept."""
        self = cls(identity, SecurePlan.parse(record["plan"]))
        self._stage = record["stage"]
        self._channel = X25519PrivateKey.from_private_bytes(record["channel"])
        self._mask = X25519PrivateKey.from_private_bytes(record["mask"])
        self._seed = record["seed"]
        self._own = Advertisement.parse(record["own"]) if record["own"] else None
        if record["roster"]:
            self._enlist(Roster.parse(self.plan, record["roster"]))
        pairs = zip(record["peers"], record["advertisements"], strict=True)
        self._peers = {place: Advertisement.parse(raw) for place, raw in pairs}
        size = shamir.SHARE_BYTES
        self._held = {
            place: (raw[:size], raw[size:])
            for place, raw in zip(record["held"], record["shares"], strict=True)
        }
        self._live_bits = record["live"]
        return self

    @_ending
    def advertise(self) -> Advertisement:
        """Fresh keys, signed for this round."""
        self._enter("advertise")
        self._own = Advertisement.sign(
            self._identity.key,
            self._identity.certificate.raw,
            self.plan,
            (
                self._channel.public_key().public_bytes_raw(),
                self._mask.public_key().public_bytes_raw(),
                hashlib.sha256(self._seed).digest(),
            ),
        )
        return self._own

    @_ending
    def share(self, roster: Roster, peers: Mapping[int, Advertisement]) -> dict[int, bytes]:
        """Split both secrets among the neighbours.

        Args:
            roster: All devices of the round.
            peers: The neighbours' keys, by place.

        Returns:
            For each neighbour: its shares, encrypted.

        Raises:
            SecureRoundRefusedError: The roster lacks this device or has it with other keys, the
                neighbours are not those of the graph, or one of them is not enrolled or its keys
                are not its own.
        """
        self._enter("share")
        if self._identity.id not in roster.ids:
            self._refuse("the roster lacks this device")
        self._enlist(roster)
        if self._own is None or roster.digests[self._index] != self._own.digest:
            self._refuse("the roster has other keys of this device")
        if tuple(sorted(peers)) != roster.neighbours[self._index]:
            self._refuse("the neighbours are not those of the round's graph")
        for place, advertisement in peers.items():
            if advertisement.digest != roster.digests[place]:
                self._refuse(f"the keys of device {place} are not those of the roster")
            if (
                advertisement.check(self.plan, self._identity.authorities).device
                != (roster.ids[place])
            ):
                self._refuse(f"the keys of device {place} are of another device")
        self._peers = dict(peers)
        holders = sorted((*peers, self._index))
        points = [place + 1 for place in holders]
        split = [
            shamir.split(secret, points, roster.threshold)
            for secret in (self._seed, self._mask.private_bytes_raw())
        ]
        sealed = {}
        for place, seed_share, mask_share in zip(holders, *split, strict=True):
            if place == self._index:
                self._held[place] = (seed_share, mask_share)
                continue
            key, plain = self._channel_key(roster, place), seed_share + mask_share
            sealed[place] = keys.seal(key, plain, roster.digest, self._index, place)
        return sealed

    @_ending
    def upload(self, inbox: Mapping[int, bytes], values: npt.NDArray[np.integer]) -> Words:
        """Mask the update.

        Args:
            inbox: The shares meant for this device, by the neighbour that sent them.
            values: The whole numbers to add up, [d], within the plan's bits and noise.

        Returns:
            uint16 or uint32, [d].

        Raises:
            SecureRoundRefusedError: Too few neighbours shared, or a share was changed.
        """
        self._enter("upload")
        roster = self._listed()
        if set(inbox) - set(self._peers):
            self._refuse("shares of devices that are no neighbours")
        if len(inbox) + 1 < roster.threshold:
            self._refuse(
                f"{len(inbox) + 1} devices hold each other's shares, and {roster.threshold} are "
                "needed"
            )
        context, index = roster.digest, self._index
        for place, sealed in inbox.items():
            plain = keys.unseal(self._channel_key(roster, place), sealed, context, place, index)
            if len(plain) != 2 * shamir.SHARE_BYTES:
                self._refuse(f"the shares from device {place} have {len(plain)} bytes")
            self._held[place] = (plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :])
        streams = [(keys.derive(self._seed, b"self", context, index), 1)]
        for place in inbox:
            secret = keys.agree(self._mask, self._peers[place].mask_key)
            sign = 1 if index < place else -1
            streams.append((keys.derive(secret, b"mask", context, index, place), sign))
        masked = values.astype(self.plan.dtype)
        add_masks(masked, streams, self.plan.stream)
        self._seed = b""
        return masked

    @_ending
    def confirm(self, live: bytes) -> bytes:
        """Sign who is still there.

        Args:
            live: A bitmap of places (`roster.to_bitmap`).

        Raises:
            SecureRoundRefusedError: Fewer than the plan's least or than the threshold among the
                neighbours, without this device, or with one whose mask would not cancel.
        """
        self._enter("confirm")
        roster = self._listed()
        places = from_bitmap(live, len(roster.ids))
        if len(places) < self.plan.min_live:
            self._refuse(f"{len(places)} devices are left, and {self.plan.min_live} are needed")
        if self._index not in places:
            self._refuse("this device is said to be lost")
        around = set(places) & {*self._peers, self._index}
        if around - set(self._held):
            self._refuse("a device is said to be there that has shared nothing with this one")
        if len(around) < roster.threshold:
            self._refuse(
                f"{len(around)} of the neighbours are left, and {roster.threshold} are needed"
            )
        self._live_bits = live
        return self._identity.key.sign(live_statement(roster, live))

    @_ending
    def unmask(self, live: bytes, signatures: Mapping[int, bytes]) -> dict[int, tuple[str, bytes]]:
        """Give out one share of each neighbour, now that enough have signed the same set.

        Args:
            live: The set that was confirmed, again.
            signatures: Of it, by place.

        Returns:
            By place: ``("seed", share)`` of one that is there, ``("mask", share)`` of one that is
            lost.

        Raises:
            SecureRoundRefusedError: Another set, or too few valid signatures among the neighbours.
        """
        self._enter("unmask")
        if live != self._live_bits:
            self._refuse("the live set is not the one that this device has confirmed")
        roster = self._listed()
        alive = set(from_bitmap(live, len(roster.ids)))
        statement, around = live_statement(roster, live), {*self._peers, self._index}
        valid = {self._index}
        for place, signature in signatures.items():
            if place not in around & alive:
                self._refuse(f"a signature of device {place}, which is lost or no neighbour")
            if not verified(roster.ids[place], signature, statement):
                self._refuse(f"device {place} has not signed this live set")
            valid.add(place)
        if len(valid) < roster.threshold:
            self._refuse(
                f"{len(valid)} neighbours have signed the live set, and {roster.threshold} are "
                "needed"
            )
        held, self._held = self._held, {}
        return {
            place: ("seed", shares[0]) if place in alive else ("mask", shares[1])
            for place, shares in held.items()
        }

    def _enter(self, stage: str) -> None:
        """Each stage once and in order: the next one counts as begun, whatever comes of this."""
        if stage != self._stage:
            self._refuse(
                f"stage {stage!r} again or out of order: this device is at {self._stage!r}"
            )
        self._stage = STAGES[STAGES.index(stage) + 1]

    def _enlist(self, roster: Roster) -> None:
        self._roster, self._index = roster, roster.ids.index(self._identity.id)

    def _listed(self) -> Roster:
        if self._roster is None:
            self._refuse("there is no roster yet")
        return self._roster

    def _channel_key(self, roster: Roster, place: int) -> bytes:
        """What only this device and that one know."""
        if place not in self._channels:
            secret = keys.agree(self._channel, self._peers[place].channel_key)
            key = keys.derive(secret, b"channel", roster.digest, self._index, place)
            self._channels[place] = key
        return self._channels[place]

    def _end(self) -> None:
        """Forget every secret."""
        self._stage = STAGES[-1]
        self._seed, self._held, self._channels = b"", {}, {}
        self._channel, self._mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()

    def _refuse(self, why: str) -> NoReturn:
        raise SecureRoundRefusedError(f"secure round {self.plan.round_id[:8]}…: {why}")
