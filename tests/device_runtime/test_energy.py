import pytest

from rootlet_runtime import estimate_energy_j

COST = {
    "train_macs_int8": 1_000_000,
    "train_macs_float32": 100_000,
    "predict_macs_int8": 500_000,
    "weight_bytes": 8_000,
}


def test_by_hand() -> None:
    """1e6 x 0.3 pJ + 1e5 x 4.6 pJ + 8000 B x 162.5 pJ = 2.06 uJ an example."""
    assert estimate_energy_j(COST, train_examples=10).joules == pytest.approx(20.6e-6)
    assert estimate_energy_j(COST, predict_examples=10).joules == pytest.approx(14.5e-6)


def test_it_adds_up_and_says_that_it_is_an_estimate() -> None:
    both = estimate_energy_j(COST, train_examples=3, predict_examples=4)
    apart = estimate_energy_j(COST, train_examples=3), estimate_energy_j(COST, predict_examples=4)
    assert both.joules == pytest.approx(sum(part.joules for part in apart))
    assert both.method == "estimated"
    assert estimate_energy_j({}, train_examples=3).joules == 0


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        estimate_energy_j(COST, train_examples=-1)
