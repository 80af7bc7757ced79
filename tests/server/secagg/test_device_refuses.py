"""What a device refuses of a server, malicious or broken; afterwards the round is over for it."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.secagg.device import DeviceRound
from rootlet.secagg.errors import EnrolmentError, SecureRoundRefusedError
from rootlet.secagg.messages import StageMessage
from rootlet.secagg.participation import SecureParticipation, UsedRounds
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.policy import SecurePolicy
from rootlet.secagg.roster import Advertisement, Roster, to_bitmap

from .conftest import AUTHORITY, identity, plan_for

SIX = 6


def over(device):
    """The device answers no further stage, and has forgotten its secrets."""
    assert device.stage == "over"
    record = device.to_record()
    assert (record["seed"], record["shares"]) == (b"", [])
    with pytest.raises(SecureRoundRefusedError):
        device.confirm(b"\xff")


def peers_of(secure, n):
    return {j: Advertisement.parse(raw) for j, raw in secure.server.peers(secure.places[n]).items()}


@pytest.fixture
def advertised(make_round):
    secure = make_round(SIX)
    secure.run(until="advertise")
    return secure


@pytest.mark.parametrize("part", ["channel_key", "mask_key", "commitment"])
def test_keys_that_were_exchanged_on_their_way(advertised, part):
    """A server that puts its own key in, in the roster too, has no signature for it."""
    peers = peers_of(advertised, 0)
    place = min(peers)
    peers[place] = replace(peers[place], **{part: bytes(range(32))})
    digests = list(advertised.roster.digests)
    digests[place] = peers[place].digest
    roster = Roster(advertised.plan, advertised.roster.ids, tuple(digests))
    with pytest.raises(SecureRoundRefusedError, match="not signed by it for this round"):
        advertised.devices[0].share(roster, peers)
    over(advertised.devices[0])


def test_keys_that_are_not_those_of_the_roster(advertised):
    peers = peers_of(advertised, 0)
    first, second = sorted(peers)[:2]
    peers[first] = peers[second]
    with pytest.raises(SecureRoundRefusedError, match="not those of the roster"):
        advertised.devices[0].share(advertised.roster, peers)
    over(advertised.devices[0])


def test_an_advertisement_of_another_round(make_round, advertised):
    other = make_round(SIX)
    other.devices[1] = DeviceRound(advertised.devices[1]._identity, other.plan)
    other.run(until="advertise")
    replayed = other.devices[1]._own
    peers = peers_of(advertised, 0)
    place = advertised.places[1]
    peers[place] = replayed
    digests = list(advertised.roster.digests)
    digests[place] = replayed.digest
    roster = Roster(advertised.plan, advertised.roster.ids, tuple(digests))
    with pytest.raises(SecureRoundRefusedError, match="not signed by it for this round"):
        advertised.devices[0].share(roster, peers)


@pytest.mark.parametrize(
    ("stranger", "why"),
    [
        (lambda: identity(authority=Ed25519PrivateKey.generate()), "enrolment authority"),
        (lambda: identity(days=-1), "ended on"),
    ],
)
def test_a_neighbour_that_is_not_enrolled(make_round, stranger, why):
    secure = make_round(SIX)
    found = stranger()
    secure.devices[1] = DeviceRound(found, secure.plan)
    with pytest.raises(SecureRoundRefusedError, match=why):
        secure.devices[1].advertise().check(secure.plan, [AUTHORITY.public_key()])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda ids: (ids[0], ids[0], *ids[2:]), "a device twice"),
        (lambda ids: (ids[1], ids[0], *ids[2:]), "not sorted"),
        (lambda ids: ids[:1], "a roster of 1"),
    ],
)
def test_a_roster_that_cannot_be(advertised, change, why):
    ids = change(advertised.roster.ids)
    with pytest.raises(SecureRoundRefusedError, match=why):
        Roster(advertised.plan, ids, advertised.roster.digests[: len(ids)])


def test_neighbours_that_the_server_chose(make_round):
    secure = make_round(70)
    secure.run(until="advertise")
    ids = secure.roster.ids
    chosen = {
        j: secure.server._advertised[ids[j]]
        for j in range(70)
        if j not in secure.roster.neighbours[secure.places[0]] and j != secure.places[0]
    }
    with pytest.raises(SecureRoundRefusedError, match="not those of the round's graph"):
        secure.devices[0].share(secure.roster, chosen)


def test_a_roster_without_the_device_or_with_other_keys_of_it(make_round, advertised):
    stranger = DeviceRound(identity(), advertised.plan)
    stranger.advertise()
    with pytest.raises(SecureRoundRefusedError, match="lacks this device"):
        stranger.share(advertised.roster, {})
    again = DeviceRound(advertised.devices[0]._identity, advertised.plan)
    again.advertise()
    with pytest.raises(SecureRoundRefusedError, match="other keys of this device"):
        again.share(advertised.roster, {})


@pytest.mark.parametrize("how", ["flipped", "swapped", "replayed"])
def test_a_share_that_was_changed(make_round, how):
    secure = make_round(SIX)
    secure.run(until="share")
    inbox = secure.server.inbox(secure.places[0])
    first, second = sorted(inbox)[:2]
    if how == "flipped":
        inbox[first] = inbox[first][:-1] + bytes([inbox[first][-1] ^ 1])
    elif how == "swapped":
        inbox[first], inbox[second] = inbox[second], inbox[first]
    else:
        other = make_round(SIX)
        other.run(until="share")
        inbox[first] = next(iter(other.server.inbox(0).values()))
    with pytest.raises(SecureRoundRefusedError, match="changed on their way"):
        secure.devices[0].upload(inbox, secure.values[0])
    over(secure.devices[0])


def test_too_few_shares_and_shares_of_strangers(make_round):
    for keep, why in ((2, "are needed"), (9, "no neighbours")):
        secure = make_round(SIX)
        secure.run(until="share")
        inbox = secure.server.inbox(secure.places[0])
        inbox = dict(list(inbox.items())[:keep]) | ({99: b""} if keep > SIX else {})
        with pytest.raises(SecureRoundRefusedError, match=why):
            secure.devices[0].upload(inbox, secure.values[0])
        over(secure.devices[0])


def test_live_sets_that_cannot_be(make_round):
    cases = (
        (lambda own, rest: rest, "is said to be lost"),
        (lambda own, rest: [own], "and 2 are needed"),
        (lambda own, rest: [own, *rest[:2]], "of the neighbours are left"),
    )
    for chosen, why in cases:
        secure = make_round(SIX)
        secure.run(until="upload")
        own = secure.places[0]
        rest = [place for place in range(SIX) if place != own]
        with pytest.raises(SecureRoundRefusedError, match=why):
            secure.devices[0].confirm(to_bitmap(chosen(own, rest), SIX))
        over(secure.devices[0])


def test_a_device_that_never_shared_cannot_be_said_to_live(make_round):
    secure = make_round(SIX, {"share": {5}})
    secure.run(until="upload")
    with pytest.raises(SecureRoundRefusedError, match="shared nothing with this one"):
        secure.devices[0].confirm(to_bitmap(range(SIX), SIX))


def test_another_live_set_than_was_confirmed_gets_neither_secret(make_round):
    """Asking for both secrets of one device: as living of some, as lost of the others."""
    secure = make_round(SIX)
    secure.run(until="confirm")
    own = secure.places[0]
    smaller = to_bitmap([p for p in range(SIX) if p != (own + 1) % SIX], SIX)
    with pytest.raises(SecureRoundRefusedError, match="not the one that this device has confirmed"):
        secure.devices[0].unmask(smaller, secure.server.signatures(own))
    over(secure.devices[0])


def test_two_live_sets_never_both_find_enough_signatures(make_round):
    """A server that tells half of the devices another set gets no share from any of them."""
    secure = make_round(SIX)
    secure.run(until="upload")
    full = to_bitmap(range(SIX), SIX)
    victim = secure.places[0]
    without = to_bitmap([p for p in range(SIX) if p != victim], SIX)
    signatures = {full: {}, without: {}}
    for n in range(SIX):
        told = full if n < 3 else without
        signatures[told][secure.places[n]] = secure.devices[n].confirm(told)
    for n in range(SIX):
        told = full if n < 3 else without
        given = {p: s for p, s in signatures[told].items() if p != secure.places[n]}
        with pytest.raises(SecureRoundRefusedError, match="have signed the live set"):
            secure.devices[n].unmask(told, given)


def test_signatures_that_are_forged_or_of_lost_devices(make_round):
    for change, why in (
        (lambda signatures, place: signatures | {place: bytes(64)}, "has not signed"),
        (lambda signatures, place: signatures | {77: bytes(64)}, "lost or no neighbour"),
    ):
        secure = make_round(SIX)
        secure.run(until="confirm")
        own = secure.places[0]
        signatures = secure.server.signatures(own)
        with pytest.raises(SecureRoundRefusedError, match=why):
            secure.devices[0].unmask(secure.live, change(signatures, min(signatures)))
        over(secure.devices[0])


def test_a_stage_again_or_out_of_order(make_round):
    secure = make_round(SIX)
    with pytest.raises(SecureRoundRefusedError, match="out of order"):
        secure.devices[0].confirm(b"\x3f")
    secure = make_round(SIX)
    secure.run()
    with pytest.raises(SecureRoundRefusedError, match="again"):
        secure.devices[0].unmask(secure.live, {})
    secure = make_round(SIX)
    secure.devices[0].advertise()
    with pytest.raises(SecureRoundRefusedError, match="again"):
        secure.devices[0].advertise()


def test_a_modulus_that_could_wrap():
    assert plan_for(255, value_bits=8, modulus_bits=16).largest_sum == 255 * 128
    with pytest.raises(SecureRoundRefusedError, match="reaches 32768"):
        plan_for(256, value_bits=8, modulus_bits=16)
    with pytest.raises(SecureRoundRefusedError, match="modulus_bits 2"):
        plan_for(10, modulus_bits=2)
    noise = NoisePlan(clip_norm=1.0, scale_bits=12, unit_inverse=100.0, honest=2)
    with pytest.raises(SecureRoundRefusedError, match="and their noise"):
        plan_for(10, value_bits=8, modulus_bits=16, noise=noise)


def test_too_few_neighbours_for_so_many_devices(advertised):
    with pytest.raises(SecureRoundRefusedError, match="too few neighbours for 6 devices"):
        Roster(replace(advertised.plan, degree=2), advertised.roster.ids, advertised.roster.digests)


def test_plans_that_are_not_in_the_one_encoding():
    plan = plan_for(10)
    assert SecurePlan.parse(plan.raw) == plan
    for raw, why in (
        (plan.raw.replace(b'"values": 50', b'"values":  50'), "canonical"),
        (plan.raw.replace(b"{", b'{\n "more": 1,', 1), "more"),
        (b"x" * 20_000, "at most"),
        (plan.raw.replace(b'"devices": 10', b'"devices": NaN'), "not a plan"),
    ):
        with pytest.raises(SecureRoundRefusedError, match=why):
            SecurePlan.parse(raw)


def asking(plan):
    return StageMessage(stage="advertise", round_id="", values={"plan": plan.raw})


def test_plans_below_the_devices_floors_and_rounds_that_were_begun_before(tmp_path):
    def device(**floors):
        return SecureParticipation(
            identity(), SecurePolicy(**floors), manifest_sha256="ab" * 32, values=50,
            used=UsedRounds(tmp_path / "rounds"),
        )  # fmt: skip

    plan = plan_for(20, min_live=4)
    with pytest.raises(SecureRoundRefusedError, match="in no sum of fewer than 5"):
        device().answer(asking(plan))
    with pytest.raises(SecureRoundRefusedError, match="noise multiplier is 0: this device asks"):
        device(min_live=4, min_noise_multiplier=1.0).answer(asking(plan))
    with pytest.raises(SecureRoundRefusedError, match="install the same bundle"):
        device(min_live=4).answer(asking(plan_for(20, min_live=4, values=51)))
    assert device(min_live=4).answer(asking(plan)).records
    with pytest.raises(SecureRoundRefusedError, match="was begun before"):
        device(min_live=4).answer(asking(plan))  # also after a restart


def test_a_certificate_of_another_authority_is_none():
    found = identity(authority=Ed25519PrivateKey.generate())
    with pytest.raises(EnrolmentError, match="not of the enrolment authority"):
        type(found.certificate).verify(found.certificate.raw, [AUTHORITY.public_key()])
