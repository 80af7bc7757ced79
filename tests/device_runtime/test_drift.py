"""The drift alarm: by hand, against river's implementation, and its rates of alarm."""

import math

import numpy as np
import pytest

from rootlet_runtime.drift import LossDrift, PageHinkley
from rootlet_runtime.errors import DataError

# river 0.26.1: PageHinkley(min_instances=30, delta=0.05, threshold=12, alpha=1.0, mode="up") on the
# stream below, values (from 0) at which it reports drift; river starts anew after each.
RIVER = {
    0: [95, 249, 295, 394, 558, 639, 694, 733, 775],
    1: [413, 469, 524, 603, 643, 763],
    2: [441, 600, 781],
}
STREAM = 5000


def alarms(test: PageHinkley | LossDrift, values: np.ndarray) -> list[int]:
    found = []
    for number, value in enumerate(values):
        if test.update(float(value)):
            found.append(number)
            test.reset()
    return found


def test_by_hand() -> None:
    """Means 0, 0, 1, 1.5; sums 0, 0, 2 and 2 + 1.5; their least is 0."""
    test = PageHinkley(delta=0, threshold=3, min_values=1)
    assert [test.update(v) for v in (0, 0, 3, 3)] == [False, False, False, True]


@pytest.mark.parametrize("seed", RIVER)
def test_it_alarms_where_river_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.exponential(1.0, 400), rng.exponential(1.6, 400)])
    assert alarms(PageHinkley(delta=0.05, threshold=12), values) == RIVER[seed]


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(0, 1, STREAM),
        lambda rng: rng.exponential(1, STREAM),
        lambda rng: rng.lognormal(0, 1.5, STREAM),
        lambda rng: (rng.random(STREAM) < 0.1).astype(float),
    ],
    ids=["normal", "exponential", "lognormal", "one error in ten"],
)
def test_false_alarms_are_rarer_than_one_in_ten_thousand(draw) -> None:
    streams = [draw(np.random.default_rng(run)) for run in range(8)]
    assert sum(len(alarms(LossDrift(), stream)) for stream in streams) <= 1  # of 40,000 values
    eager = [alarms(LossDrift(threshold=5.0), stream) for stream in streams]
    assert sum(map(len, eager)) > 40  # the control: a low threshold is caught


def test_a_rise_is_found_soon_and_a_fall_never() -> None:
    for run in range(20):
        rng = np.random.default_rng(run)
        before, after = rng.random(600) < 0.1, rng.random(300) < 0.4
        found = alarms(LossDrift(), np.concatenate([before, after]).astype(float))
        assert found
        assert 600 <= found[0] < 750
        assert not alarms(LossDrift(), np.concatenate([after, before]).astype(float))


def test_the_unit_of_the_loss_does_not_matter() -> None:
    values = np.concatenate([np.random.default_rng(0).exponential(s, 400) for s in (1.0, 3.0)])
    assert alarms(LossDrift(), values) == alarms(LossDrift(), 1000 * values + 7)


def test_a_loss_that_is_not_finite_is_an_alarm() -> None:
    assert LossDrift().update(math.nan)
    assert PageHinkley(delta=0, threshold=1).update(math.inf)


def test_one_outlier_is_no_drift() -> None:
    values = np.random.default_rng(0).normal(0, 1, 500)
    values[300] = 1e6
    assert not alarms(LossDrift(), values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PageHinkley(delta=-1, threshold=1),
        lambda: PageHinkley(delta=0, threshold=0),
        lambda: LossDrift(reference=1),
        lambda: LossDrift(cut=0),
    ],
)
def test_impossible_numbers_are_refused(make) -> None:
    with pytest.raises(DataError, match="must be at least"):
        make()
