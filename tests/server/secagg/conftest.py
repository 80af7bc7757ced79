"""A whole secure round in memory: real devices, a real aggregator, and losses at every stage."""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.secagg.device import DeviceRound
from rootlet.secagg.enrolment import Certificate, Identity
from rootlet.secagg.graph import degree_for
from rootlet.secagg.plan import SecurePlan
from rootlet.secagg.roster import Advertisement, Roster
from rootlet_server.secagg.aggregator import SecureAggregator

STAGES = ("advertise", "share", "upload", "confirm", "unmask")
AUTHORITY = Ed25519PrivateKey.generate()


def identity(name="device", authority=AUTHORITY, days=1, trusts=None):
    """An enrolled device."""
    key = Ed25519PrivateKey.generate()
    certificate = Certificate.issue(
        authority,
        key.public_key().public_bytes_raw(),
        name=name,
        expires=datetime.now(UTC) + timedelta(days=days),
    )
    return Identity(key, certificate, (trusts or AUTHORITY.public_key(),))


def plan_for(devices, **changes):
    """A plan that any device of the tests takes."""
    given = {
        "round_id": os.urandom(16).hex(), "run": "1", "manifest_sha256": "ab" * 32, "values": 50,
        "value_bits": 8, "modulus_bits": 16, "bound": 1.0, "devices": devices, "min_live": 2,
        "degree": max(1, degree_for(devices)),
    }  # fmt: skip
    return SecurePlan(**(given | changes))


@dataclass
class Round:
    """One round; `lost[stage]` are devices, by number, that fall silent before it."""

    plan: SecurePlan
    devices: list[DeviceRound]
    lost: dict[str, set[int]] = field(default_factory=dict)
    values: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        self.server = SecureAggregator(self.plan, [AUTHORITY.public_key()])
        self.gone, self.places = set(), {}

    def there(self, stage):
        self.gone |= self.lost.get(stage, set())
        return [n for n in range(len(self.devices)) if n not in self.gone]

    def advertise(self):
        ids = {
            n: self.server.add_advertisement(self.devices[n].advertise().raw)
            for n in self.there("advertise")
        }
        self.roster = self.server.close_roster()
        self.places = {n: self.server.place(device) for n, device in ids.items()}

    def share(self):
        for n in self.there("share"):
            self.server.add_shares(self.places[n], self.shares_of(n))

    def shares_of(self, n):
        roster = Roster.parse(self.plan, self.roster.raw)
        peers = {
            j: Advertisement.parse(raw) for j, raw in self.server.peers(self.places[n]).items()
        }
        return self.devices[n].share(roster, peers)

    def upload(self):
        for n in self.there("upload"):
            inbox = self.server.inbox(self.places[n])
            if len(inbox) + 1 < self.roster.threshold:
                self.gone.add(n)  # it refuses, as it must
                continue
            masked = self.devices[n].upload(inbox, self.values[n])
            self.server.add_upload(self.places[n], masked)
        self.uploaded = [n for n in self.places if self.places[n] in self.server.live]
        self.live = self.server.close_live()

    def confirm(self):
        for n in self.there("confirm"):
            if n in self.uploaded:
                signature = self.devices[n].confirm(self.live)
                self.server.add_confirmation(self.places[n], signature)

    def unmask(self):
        for n in self.there("unmask"):
            place = self.places.get(n)
            signatures = {} if place is None else self.server.signatures(place)
            if place in self.server.confirmed and len(signatures) + 1 >= self.roster.threshold:
                shares = self.devices[n].unmask(self.live, signatures)
                self.server.add_unmasking(place, shares)

    def run(self, until="unmask"):
        """All stages up to one, and the sum where that is the last."""
        for stage in STAGES[: STAGES.index(until) + 1]:
            getattr(self, stage)()
        return self.server.result() if until == "unmask" else None

    def expected(self):
        return sum(self.values[n].astype(np.int64) for n in self.uploaded)


@pytest.fixture
def make_round():
    """`make_round(devices, lost=..., **plan)`."""

    def make(devices, lost=None, seed=0, **changes):
        plan = plan_for(devices, **changes)
        largest = 2 ** (plan.value_bits - 1) - 1
        rng = np.random.default_rng(seed)
        values = {n: rng.integers(-largest, largest + 1, plan.values) for n in range(devices)}
        members = [DeviceRound(identity(f"device {n}"), plan) for n in range(devices)]
        return Round(plan, members, lost or {}, values)

    return make
