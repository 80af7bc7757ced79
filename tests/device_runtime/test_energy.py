import pytest

from rootlet_runtime import count_work, estimated_energy
from rootlet_runtime.energy import INSTRUCTIONS_PER_MAC, PJ_PER_INSTRUCTION, Work

COST = {
    "train_macs_int8": 1_000_000,
    "train_macs_float32": 100_000,
    "predict_macs_int8": 500_000,
    "weight_bytes": 8_000,
}


MAC_J = PJ_PER_INSTRUCTION * INSTRUCTIONS_PER_MAC * 1e-12


def test_by_hand() -> None:
    """1e6 x 0.3 pJ + 1e5 x 4.6 pJ an example, its instructions, and 8000 B x 162.5 pJ a batch."""
    alone = count_work(COST, train_examples=10)
    assert alone == Work(macs_int8=10**7, macs_float32=10**6, bytes_moved=80_000)
    assert alone.estimated_j == pytest.approx(20.6e-6 + 1.1e7 * MAC_J)
    assert alone.instructions_estimated == round(1.1e7 * INSTRUCTIONS_PER_MAC)
    batched = count_work(COST, train_examples=10, train_batches=2)
    assert batched.estimated_j == pytest.approx(7.6e-6 + 2.6e-6 + 1.1e7 * MAC_J)
    predicted = count_work(COST, predict_examples=10).estimated_j
    assert predicted == pytest.approx(14.5e-6 + 5e6 * MAC_J)


def test_work_adds_up() -> None:
    both = count_work(COST, train_examples=3, predict_examples=4, predict_batches=1)
    apart = (
        count_work(COST, train_examples=3),
        count_work(COST, predict_examples=4, predict_batches=1),
    )
    assert apart[0] + apart[1] == both
    counted = [Work(macs_int8=n, instructions_measured=n) for n in (1, 2)]
    assert (counted[0] + counted[1]).instructions_measured == 3
    assert (counted[0] + apart[0]).instructions_measured is None


def test_an_estimate_says_so() -> None:
    energy = estimated_energy(count_work(COST, train_examples=1))
    assert (energy.method, energy.source) == ("estimated", "operations")
    assert energy.joules == energy.work.estimated_j
    assert estimated_energy(count_work({}, train_examples=3)).joules == 0


@pytest.mark.parametrize("name", ["train_examples", "train_batches", "predict_batches"])
def test_negative_counts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        count_work(COST, **{name: -1})
