"""Statistics of the reservoirs, each with a control that the test must reject."""

import numpy as np
from scipy import stats

from rootlet_runtime.reservoir import BalancedReservoir, Sampler, UniformReservoir

CAPACITY, STREAM, RUNS = 10, 50, 2000


def kept(sampler: Sampler, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the examples held at the end of a stream, slot by slot."""
    slots: dict[int, int] = {}
    for number, label in enumerate(labels):
        slot = sampler.place(int(label), rng)
        if slot is not None:
            slots[slot] = number
    assert sorted(slots) == list(range(len(slots)))
    return np.array([slots[slot] for slot in sorted(slots)])


def inclusion_p(make, labels: np.ndarray, of: np.ndarray) -> float:
    """p of the chi-square test that all examples ``of`` are held equally often over many runs."""
    counts = np.zeros(len(labels))
    for run in range(RUNS):
        counts[kept(make(), labels, np.random.default_rng(run))] += 1
    share = counts[of] / RUNS
    # Without replacement: each count has the variance RUNS p (1 - p), and counts sum to RUNS n p.
    p = share.mean()
    statistic = float((np.square(counts[of] - RUNS * p) / (RUNS * p * (1 - p))).sum())
    statistic *= (len(of) - 1) / len(of)
    return float(stats.chi2.sf(statistic, len(of) - 1))


class Newest(UniformReservoir):
    """The control: a new example is kept a little too often."""

    def place(self, label: int, rng: np.random.Generator) -> int | None:
        self.seen += 1
        if self.seen <= self.capacity:
            return self.seen - 1
        drawn = int(rng.integers(int(self.seen * 0.9)))
        return drawn if drawn < self.capacity else None


def test_every_example_is_held_equally_often() -> None:
    labels, everything = np.zeros(STREAM), np.arange(STREAM)
    assert inclusion_p(lambda: UniformReservoir(CAPACITY), labels, everything) > 1e-3
    assert inclusion_p(lambda: Newest(CAPACITY), labels, everything) < 1e-6


def test_the_share_held_is_capacity_by_stream() -> None:
    counts = np.zeros(STREAM)
    for run in range(RUNS):
        held = kept(UniformReservoir(CAPACITY), np.zeros(STREAM), np.random.default_rng(run))
        assert len(held) == CAPACITY == len(set(held.tolist()))
        counts[held] += 1
    p = CAPACITY / STREAM
    assert abs(counts[0] / RUNS - p) < 4 * np.sqrt(p * (1 - p) / RUNS)


def test_classes_are_balanced_however_skewed_the_stream() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 30, 20])
    rng.shuffle(labels)
    for run in range(20):
        held = kept(BalancedReservoir(12, 3), labels, np.random.default_rng(run))
        assert np.bincount(labels[held], minlength=3).tolist() == [4, 4, 4]
    uniform = kept(UniformReservoir(12), labels, np.random.default_rng(0))
    assert np.bincount(labels[uniform], minlength=3).tolist() != [4, 4, 4]


def test_a_class_that_comes_late_takes_its_share_from_the_largest() -> None:
    labels = np.repeat([0, 1, 2, 3], 50)
    held = kept(BalancedReservoir(20, 4), labels, np.random.default_rng(3))
    assert np.bincount(labels[held], minlength=4).tolist() == [5, 5, 5, 5]


def test_within_a_class_every_example_is_held_equally_often() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1], [35, 15]))
    for label in (0, 1):
        of = np.flatnonzero(labels == label)
        assert inclusion_p(lambda: BalancedReservoir(CAPACITY, 2), labels, of) > 1e-3


def test_a_rare_class_is_kept_whole_while_there_is_room() -> None:
    labels = np.array([0] * 60 + [1, 1, 1])
    held = kept(BalancedReservoir(10, 2), labels, np.random.default_rng(0))
    assert {60, 61, 62} <= set(held.tolist())
