"""The learning rate, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet_server.training import ScheduleConfig
from rootlet_server.training.schedules import rate_share

DECAYS = st.sampled_from(["constant", "linear", "cosine", "one_cycle"])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(decay="linear", warmup=0.25), [0.5, 1, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6]),
        (ScheduleConfig(decay="cosine", warmup=0.0), [1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087]),
        (ScheduleConfig(decay="constant", warmup=0.5), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (ScheduleConfig(decay="one_cycle", warmup=0.25), [0.5, 1, 1, 0.9330, 0.75]),
    ],
)
def test_by_hand(config, expected):
    found = [rate_share(config, step, 8) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-4)


@given(decay=DECAYS, warmup=st.floats(0.01, 0.9), final=st.floats(0, 1), steps=st.integers(1, 300))
def test_it_rises_to_one_and_never_leaves_its_bounds(decay, warmup, final, steps):
    config = ScheduleConfig(decay=decay, warmup=warmup, final=final)
    shares = [rate_share(config, step, steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares[:-1])
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert max(shares) == pytest.approx(1)
