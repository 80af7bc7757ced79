"""The gate's verdicts, its false refusals, and that it does refuse."""

import numpy as np
import pytest

from rootlet_runtime.errors import DataError
from rootlet_runtime.quality_gate import QualityGate, example_errors, p_value

GATE = QualityGate()


def flips(n: int, worse: int, better: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of n examples of which some turned wrong and some turned right."""
    before, after = np.zeros(n), np.zeros(n)
    after[:worse] = 1
    before[worse : worse + better] = 1
    return before, after


def test_p_by_hand() -> None:
    """Four examples turned wrong and none right: all four coins must fall one way, 1/16."""
    assert p_value(*flips(50, 4, 0)) == pytest.approx(1 / 16, abs=0.02)
    assert p_value(*flips(50, 0, 4)) == 1
    assert p_value(*flips(50, 0, 0)) == 1
    assert p_value(*flips(50, 6, 1)) == pytest.approx(8 / 128, abs=0.02)


def test_an_update_that_is_not_worse_is_accepted() -> None:
    for worse, better in ((0, 0), (0, 5), (3, 3), (2, 4)):
        verdict = GATE.judge(*flips(100, worse, better))
        assert verdict.accepted
        assert verdict.examples == 100
        assert verdict.after - verdict.before == pytest.approx((worse - better) / 100)


def test_an_update_that_is_surely_worse_is_refused() -> None:
    verdict = GATE.judge(*flips(400, 12, 1))
    assert not verdict.accepted
    assert verdict.p_value <= GATE.alpha
    assert "rose from 0.0025 to 0.03" in verdict.reason


def test_a_fall_beyond_the_margin_needs_less_evidence() -> None:
    verdict = GATE.judge(*flips(12, 3, 0))
    assert not verdict.accepted
    assert verdict.p_value > GATE.alpha
    assert "above the margin 0.1" in verdict.reason
    assert GATE.judge(*flips(60, 3, 0)).accepted  # as much evidence, within the margin
    assert GATE.judge(*flips(8, 1, 0)).accepted  # one example of eight says nothing


def test_chance_is_refused_no_more_often_than_alpha() -> None:
    """As many examples turn right as wrong, by fair coins; the control turns more of them wrong."""
    rng = np.random.default_rng(0)
    rates = {}
    for share in (0.5, 0.8):
        refused = 0
        for _ in range(300):
            change = np.where(rng.random(30) < share, 1, -1) * (np.arange(30) < 12)
            before = np.concatenate([(change < 0), np.zeros(170)]).astype(float)
            after = np.concatenate([(change > 0), np.zeros(170)]).astype(float)
            refused += not GATE.judge(before, after).accepted
        rates[share] = refused / 300
    assert rates[0.5] <= GATE.alpha + 3 * np.sqrt(GATE.alpha * (1 - GATE.alpha) / 300)
    assert rates[0.8] > 0.5


def test_regression_errors_are_judged_by_their_share() -> None:
    rng = np.random.default_rng(1)
    before = rng.exponential(100.0, 80)
    assert GATE.judge(before, before * 1.001 - 0.2, relative=True).accepted
    assert not GATE.judge(before, before * 1.2, relative=True).accepted
    assert not GATE.judge(before, before * 1.02, relative=True).accepted  # each one, so p is small


def test_nothing_to_judge_by_is_said() -> None:
    verdict = GATE.judge(np.zeros(0), np.zeros(0))
    assert verdict.accepted
    assert verdict.examples == 0
    assert "no held-out examples" in verdict.reason


def test_outputs_that_are_not_finite_are_refused() -> None:
    output = np.array([[0.1, 0.9], [np.nan, 0.5]], np.float32)
    after = example_errors("classification", output, np.array([1, 1]))
    assert after.tolist() == [0, np.inf]
    assert not GATE.judge(np.zeros(2), after).accepted


def test_errors_of_both_tasks_by_hand() -> None:
    output = np.array([[0.2, 0.8], [0.6, 0.4]], np.float32)
    assert example_errors("classification", output, np.array([1, 1])).tolist() == [0, 1]
    targets = np.array([[0.2, 0.6], [0.6, 0.4]], np.float32)
    found = example_errors("regression", output, targets)
    np.testing.assert_allclose(found, [0.02, 0], atol=1e-7)


def test_impossible_settings_and_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="alpha 0"):
        QualityGate(alpha=0)
    with pytest.raises(DataError, match="not a pair"):
        GATE.judge(np.zeros(2), np.zeros(3))
