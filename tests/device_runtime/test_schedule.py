import math

import pytest

from rootlet_runtime.schedule import CONSTANT, RateSchedule


def factors(decay: str, warmup: float, steps: int) -> list[float]:
    schedule = RateSchedule(decay=decay, warmup=warmup)
    return [schedule.factor(step, steps) for step in range(steps)]


def test_by_hand() -> None:
    """Two of ten steps rise through 1/3 and 2/3; the other eight fall from 1."""
    rise = [1 / 3, 2 / 3]
    assert factors("constant", 0.2, 10) == pytest.approx(rise + [1.0] * 8)
    assert factors("linear", 0.2, 10) == pytest.approx(rise + [1 - j / 8 for j in range(8)])
    cosine = [(1 + math.cos(math.pi * j / 8)) / 2 for j in range(8)]
    assert factors("cosine", 0.2, 10) == pytest.approx(rise + cosine)


def test_constant_is_constant() -> None:
    assert {CONSTANT.factor(step, 7) for step in range(7)} == {1.0}


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_it_is_positive_at_most_one_and_has_one_peak(decay: str, warmup: float, steps: int) -> None:
    found = factors(decay, warmup, steps)
    peak = found.index(max(found))
    assert all(0 < factor <= 1 for factor in found)
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert max(found) == (1.0 if math.ceil(warmup * steps) < steps else 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "step"}, "decay 'step'"),
        ({"warmup": -0.1}, "warmup -0.1"),
        ({"warmup": 0.6}, "warmup 0.6"),
        ({"warmup": math.nan}, "warmup nan"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateSchedule(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_fit_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0\.\.4"):
        CONSTANT.factor(step, 5)
