"""The sum is the plain integer sum, bit for bit, whoever is lost and when."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from rootlet.secagg import shamir
from rootlet.secagg.masks import STREAMS
from rootlet_server.secagg.aggregator import SecureReplyError, SecureRoundFailedError

STAGES = ("advertise", "share", "upload", "confirm", "unmask")
LOSSES = st.dictionaries(st.sampled_from(STAGES), st.floats(0, 0.3), max_size=5)


def lost_by(shares, devices, rng):
    """Devices by stage: a share of those that are left."""
    left, found = list(range(devices)), {}
    for stage in STAGES:
        count = int(shares.get(stage, 0) * len(left))
        found[stage] = set(rng.choice(left, count, replace=False).tolist())
        left = [n for n in left if n not in found[stage]]
    return found


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    devices=st.integers(5, 14),
    losses=LOSSES,
    bits=st.sampled_from([(8, 16), (16, 32)]),
    stream=st.sampled_from(STREAMS),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_up_to_thirty_per_cent_lost_at_every_stage(
    make_round, devices, losses, bits, stream, seed
):
    rng = np.random.default_rng(seed)
    secure = make_round(
        devices, lost_by(losses, devices, rng), seed, value_bits=bits[0], modulus_bits=bits[1],
        stream=stream,
    )  # fmt: skip
    try:
        found = secure.run()
    except SecureRoundFailedError:
        # Everybody holds everybody's shares here, so the threshold is the only reason there is.
        roster = getattr(secure, "roster", None)
        assert roster is not None
        answered = len(secure.server._answered)
        assert min(len(secure.server.live), answered) < max(roster.threshold, secure.plan.min_live)
        return
    np.testing.assert_array_equal(found, secure.expected())
    assert len(secure.server.live) >= secure.roster.threshold


@pytest.mark.parametrize(("devices", "lost"), [(70, 7), (130, 10)])
def test_on_a_sparse_graph(make_round, devices, lost):
    rng = np.random.default_rng(devices)
    gone = rng.permutation(devices)[: 2 * lost].tolist()
    secure = make_round(
        devices, {"upload": set(gone[:lost]), "unmask": set(gone[lost : lost + 2])}, value_bits=8
    )
    found = secure.run()
    np.testing.assert_array_equal(found, secure.expected())
    degrees = {len(around) for around in secure.roster.neighbours}
    assert degrees == {secure.plan.degree}
    assert secure.plan.degree < devices - 1


def test_the_largest_sums_do_not_wrap(make_round):
    for sign in (1, -1):
        secure = make_round(15, value_bits=12, modulus_bits=16)
        secure.values = {n: np.full(50, sign * 2047) for n in range(15)}
        np.testing.assert_array_equal(secure.run(), np.full(50, sign * 15 * 2047))


def test_below_the_threshold_nothing_is_unmasked(make_round):
    secure = make_round(6, {"unmask": {0, 1}})
    with pytest.raises(SecureRoundFailedError, match="gave out their shares"):
        secure.run()
    secure = make_round(6, {"upload": {0, 1}})
    with pytest.raises(SecureRoundFailedError, match="are left"):
        secure.run()
    secure = make_round(6, {"advertise": {0, 1, 2, 3, 4}})
    with pytest.raises(SecureRoundFailedError, match="a roster of 1"):
        secure.run()


def test_a_masked_update_looks_like_noise(make_round):
    secure = make_round(5, values=40_000)
    secure.values = {n: np.zeros(40_000, np.int64) for n in range(5)}
    secure.run(until="share")
    inbox = secure.server.inbox(secure.places[0])
    masked = secure.devices[0].upload(inbox, secure.values[0])
    counts = np.bincount(masked.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    other = make_round(5, values=40_000)
    other.values = secure.values
    other.run(until="share")
    again = other.devices[0].upload(other.server.inbox(other.places[0]), other.values[0])
    assert abs(np.corrcoef(masked, again)[0, 1]) < 5 / np.sqrt(40_000)


@pytest.mark.parametrize(("devices", "liar"), [(7, 0), (7, 6), (40, 20), (64, 0), (64, 63)])
def test_one_liar_among_the_holders_is_survived(make_round, devices, liar):
    """At whatever place: among 64 holders the first choices by order all hold the first one."""
    secure = make_round(devices)
    secure.run(until="confirm")
    for n in range(devices):
        place = secure.places[n]
        shares = secure.devices[n].unmask(secure.live, secure.server.signatures(place))
        if place == liar:
            shares = {j: (kind, bytes(shamir.SHARE_BYTES)) for j, (kind, _) in shares.items()}
        secure.server.add_unmasking(place, shares)
    np.testing.assert_array_equal(secure.server.result(), secure.expected())


def test_many_liars_end_the_round(make_round):
    secure = make_round(7)
    secure.run(until="confirm")
    for n in range(7):
        place = secure.places[n]
        shares = secure.devices[n].unmask(secure.live, secure.server.signatures(place))
        if n < 4:
            shares = {j: (kind, bytes(shamir.SHARE_BYTES)) for j, (kind, _) in shares.items()}
        secure.server.add_unmasking(place, shares)
    with pytest.raises(SecureRoundFailedError, match="several devices sent wrong ones"):
        secure.server.result()


def test_what_does_not_follow_the_protocol_is_left_out(make_round):
    secure = make_round(6)
    server = secure.server
    with pytest.raises(SecureReplyError, match="is none"):
        server.add_advertisement(b"short")
    raw = secure.devices[0].advertise().raw
    with pytest.raises(SecureReplyError, match="not signed by it"):
        server.add_advertisement(raw[:10] + bytes([raw[10] ^ 1]) + raw[11:])
    server.add_advertisement(raw)
    with pytest.raises(SecureReplyError, match="twice"):
        server.add_advertisement(raw)

    secure = make_round(6)
    server = secure.server
    secure.run(until="advertise")
    shares = secure.shares_of(0)
    place = secure.places[0]
    with pytest.raises(SecureReplyError, match="a share to each"):
        server.add_shares(place, dict(list(shares.items())[1:]))
    with pytest.raises(SecureReplyError, match="out of turn"):
        server.add_upload(place, np.zeros(50, np.uint16))
    server.add_shares(place, shares)
    for wrong in (np.zeros(49, np.uint16), np.zeros(50, np.uint32), np.zeros((50, 1), np.uint16)):
        with pytest.raises(SecureReplyError, match="expected uint16"):
            server.add_upload(place, wrong)

    secure = make_round(6)
    server = secure.server
    secure.run(until="upload")
    with pytest.raises(SecureReplyError, match="has not signed"):
        server.add_confirmation(secure.places[1], bytes(64))
    secure.confirm()
    place = secure.places[2]
    shares = secure.devices[2].unmask(secure.live, server.signatures(place))
    wrong = {j: ("mask", share) for j, (_, share) in shares.items()}
    with pytest.raises(SecureReplyError, match="nobody asked"):
        server.add_unmasking(place, wrong)
    server.add_unmasking(place, shares)
    with pytest.raises(SecureReplyError, match="out of turn"):
        server.add_unmasking(place, shares)
