"""Poisson sampling: independent draws, each with the rate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rootlet_runtime.sampling import poisson_sample


def test_sizes_have_the_binomial_law():
    """A batch of a fixed size, or a shuffle, has no such spread."""
    sizes = [len(poisson_sample(200, 0.1)) for _ in range(5000)]
    assert stats.chi2.sf(sum((s - 20) ** 2 / 18 for s in sizes), 5000) > 1e-5
    assert stats.chi2.cdf(sum((s - 20) ** 2 / 18 for s in sizes), 5000) > 1e-5
    assert np.mean(sizes) == pytest.approx(20, abs=5 * np.sqrt(18 / 5000))


def test_every_example_has_the_same_chance_and_its_own_draw():
    drawn = np.zeros((4000, 8))
    for step in drawn:
        step[poisson_sample(8, 0.25)] = 1
    deviation = 5 * np.sqrt(0.25 * 0.75 / 4000)
    assert np.abs(drawn.mean(0) - 0.25).max() < deviation
    together = np.corrcoef(drawn.T) - np.eye(8)
    assert np.abs(together).max() < 6 / np.sqrt(4000)


def test_the_ends_of_the_range():
    assert poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(5, 0.0).tolist() == []
    assert poisson_sample(0, 0.5).tolist() == []
    assert len(poisson_sample(1000, 1e-9)) == 0
