"""The parts of secure aggregation: sharing, masks, rounding, rotation, noise, enrolment."""

import contextlib
import math
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rootlet.secagg import masks, shamir
from rootlet.secagg.enrolment import Certificate, EnrolmentFolder
from rootlet.secagg.errors import EnrolmentError, SecureRoundRefusedError
from rootlet.secagg.graph import degree_for, neighbours, threshold_for
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.quantise import largest_value, quantise, signed
from rootlet.secagg.roster import Roster, from_bitmap, to_bitmap
from rootlet.secagg.rotation import rotate, rotate_back
from rootlet.secagg.update import clipped, decode, encode, flat, unflat

SECRETS = st.binary(min_size=32, max_size=32)


@settings(max_examples=50, deadline=None)
@given(secret=SECRETS, data=st.data(), count=st.integers(2, 20))
def test_any_t_shares_give_the_secret_back_and_fewer_do_not(secret, data, count):
    threshold = data.draw(st.integers(2, count))
    points = list(range(1, count + 1))
    shares = dict(zip(points, shamir.split(secret, points, threshold), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert shamir.combine({x: shares[x] for x in chosen}) == secret
    with contextlib.suppress(ValueError):  # most often it is no secret of 32 bytes at all
        assert shamir.combine({x: shares[x] for x in chosen[:-1]}) != secret


def test_shares_that_cannot_be():
    for secret, points, threshold in (
        (bytes(31), [1, 2], 2), (bytes(32), [1, 2], 3), (bytes(32), [1, 1], 1),
        (bytes(32), [0, 1], 1), (bytes(32), [1, 2], 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|threshold|points"):
            shamir.split(secret, points, threshold)


@pytest.mark.parametrize("stream", masks.STREAMS)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_masks_cancel_and_are_the_keystream(stream, dtype):
    values = np.arange(200_001).astype(dtype)
    keys = [(os.urandom(32), sign) for sign in (1, -1, 1)]
    masked = values.copy()
    masks.add_masks(masked, keys, stream)
    assert (masked != values).mean() > 0.99
    masks.add_masks(masked, [(key, -sign) for key, sign in keys], stream)
    np.testing.assert_array_equal(masked, values)
    zeros = np.zeros(70_000, dtype)
    masks.add_masks(zeros, keys[:1], stream)
    assert zeros.tobytes() == masks.keystream(keys[0][0], zeros.nbytes, stream)


def test_a_mask_is_uniform():
    stream = np.frombuffer(masks.keystream(os.urandom(32), 400_000), np.uint8)
    assert stats.chisquare(np.bincount(stream, minlength=256)).pvalue > 1e-4


def test_rounding_has_the_right_mean_and_an_error_below_one_unit():
    values = np.linspace(-0.9, 0.9, 20_000).astype(np.float32)
    draws = np.mean([quantise(values, 100.0, 8) for _ in range(50)], axis=0) / 100
    assert abs(float((draws - values).mean())) < 5 * 0.01 / math.sqrt(50 * 20_000)
    once = quantise(values, 100.0, 8) / 100
    assert np.abs(once - values).max() < 0.01 + 1e-6


def test_rounding_saturates_and_takes_nothing_that_is_no_number():
    values = np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 0.0], np.float32)
    assert quantise(values, 127.0, 8).tolist() == [127, -127, 127, -127, 0, 0]
    assert largest_value(16) == 32_767
    assert signed(np.array([0, 1, 2**16 - 1, 2**15], np.uint16)).tolist() == [0, 1, -1, -(2**15)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100, 1000, 3001])
def test_the_rotation_keeps_lengths_and_is_undone(size):
    values = np.random.default_rng(size).standard_normal(size)
    rotated = rotate(values, b"a plan")
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    np.testing.assert_allclose(rotate_back(rotated, b"a plan"), values, atol=1e-12)


def test_the_rotation_spreads_a_spike():
    spike = np.zeros(5000)
    spike[17] = 1.0
    assert np.abs(rotate(spike, b"a plan")).max() < 5 / math.sqrt(5000)
    assert not np.allclose(rotate(spike, b"a plan"), rotate(spike, b"another"))


def noisy_plan(values=2000, devices=10, scale_bits=6):
    noise = NoisePlan(clip_norm=1.0, scale_bits=scale_bits, unit_inverse=200.0, honest=9)
    return SecurePlan(
        round_id="0" * 32, run="1", manifest_sha256="ab" * 32, values=values, value_bits=12,
        modulus_bits=16, bound=10.0, devices=devices, min_live=9, degree=9, noise=noise,
    )  # fmt: skip


def test_the_noise_plan_counts_the_rounding_in_the_sensitivity():
    noise = noisy_plan().noise
    c, d = 200.0, 2000
    likely = math.sqrt(c**2 + d / 4 + math.sqrt(2 * math.log(math.sqrt(math.e))) * (c + d**0.5 / 2))
    assert noise.longest(d) == pytest.approx(min(c + math.sqrt(d), likely))
    assert noise.noise_multiplier(d) == pytest.approx(64 * 3 / noise.longest(d))


def test_a_device_adds_at_most_what_the_plan_says_and_the_sum_has_its_noise():
    plan = noisy_plan()
    rng = np.random.default_rng(0)
    for wild in (np.full(2000, 1e30), np.full(2000, np.nan), np.zeros(2000)):
        whole = encode(wild.astype(np.float32), plan)
        noise_alone = 64 * math.sqrt(2000)
        assert np.linalg.norm(whole) < plan.noise.longest(2000) + 1.2 * noise_alone
    updates = [0.01 * rng.standard_normal(2000).astype(np.float32) for _ in range(10)]
    total = np.sum([encode(update, plan) for update in updates], axis=0)
    mean = np.mean([clipped(update, 1.0) for update in updates], axis=0)
    error = (decode(total, plan, 10) - mean) * 10 * 200
    spread = math.sqrt(10 * (64**2 + 0.25))
    assert stats.kstest(error / spread, "norm").pvalue > 1e-4


def test_the_noise_of_two_devices_and_of_two_rounds_is_independent():
    plan = noisy_plan()
    zero = np.zeros(2000, np.float32)
    first, second = encode(zero, plan), encode(zero, plan)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(2000)
    assert stats.chi2.sf(float((first**2).sum()) / (64**2), 2000) > 1e-4


def test_an_update_travels_as_one_vector_in_the_order_of_names():
    arrays = {"b": np.ones((2, 3), np.float32), "a": np.arange(2, dtype=np.float32)}
    vector = flat(arrays)
    assert vector.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    back = unflat(vector, arrays)
    assert list(back) == ["b", "a"]
    np.testing.assert_array_equal(back["b"], arrays["b"])
    assert np.linalg.norm(clipped(np.full(4, 3, np.float32), 2.0)) == pytest.approx(2.0)


def test_the_graph_is_regular_symmetric_and_nobodys_choice():
    around = neighbours(b"roster", 100, 32)
    assert {len(each) for each in around} == {32}
    assert all(i in around[j] for i in range(100) for j in around[i])
    assert around != neighbours(b"another", 100, 32)
    assert neighbours(b"", 5, 9)[2] == (0, 1, 3, 4)
    assert [degree_for(n) for n in (5, 64, 100, 300, 1000)] == [4, 63, 32, 64, 96]
    assert all(3 * threshold_for(n, degree_for(n)) > 2 * degree_for(n) for n in range(2, 1200))


def test_an_odd_degree_that_makes_no_regular_graph_is_refused():
    plan = replace(noisy_plan(), noise=None, value_bits=8, devices=100)
    ids = tuple(bytes([n]) * 32 for n in range(100))
    digests = (bytes(32),) * 100
    Roster(replace(plan, degree=34), ids, digests)
    with pytest.raises(SecureRoundRefusedError, match=r"degree 33 is odd.*34 would do"):
        Roster(replace(plan, degree=33), ids, digests)


def test_bitmaps():
    assert from_bitmap(to_bitmap([0, 9, 16], 17), 17) == (0, 9, 16)
    with pytest.raises(SecureRoundRefusedError, match="names device 9 of 9"):
        from_bitmap(to_bitmap([9], 10), 9)
    with pytest.raises(SecureRoundRefusedError, match="1 bytes for 9"):
        from_bitmap(b"\x01", 9)


def test_an_enrolment_folder_keeps_the_key_and_refuses_what_is_not_its_own(tmp_path):
    authority = Ed25519PrivateKey.generate()
    public, folder = authority.public_key(), EnrolmentFolder(tmp_path / "a")
    assert folder.load() is None
    device = folder.device_id()
    assert folder.device_id() == device
    assert stat.S_IMODE((tmp_path / "a" / "identity.pem").stat().st_mode) == 0o600

    def signed(device, days=1, key=authority):
        expires = datetime.now(UTC) + timedelta(days=days)
        return Certificate.issue(key, device, name="n", expires=expires).raw

    for raw, why in (
        (signed(device, days=-1), "ended on"),
        (signed(os.urandom(32)), "is for device"),
        (signed(device, key=Ed25519PrivateKey.generate()), "not of the enrolment authority"),
        (signed(device)[:-1], "not of the enrolment authority"),
        (b"", "is none"),
    ):
        with pytest.raises(EnrolmentError, match=why):
            folder.install(raw, public)
    assert folder.load() is None
    folder.install(signed(device), public)
    assert folder.load().id == device
    (tmp_path / "a" / "certificate").write_bytes(b"damaged" * 20)
    with pytest.raises(EnrolmentError, match="not of the enrolment authority"):
        folder.load()
