"""The noise: its law, and that the tests of its law would notice another one."""

from __future__ import annotations

import decimal
import os
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from rootlet_runtime import noise
from rootlet_runtime.noise import SCALE, discrete_gaussian

DRAWS = 20_000
ALARM = 1e-4


def normal(count=DRAWS):
    return discrete_gaussian(count) / SCALE


def scale_p_value(draws):
    """Two-sided chi-square test of unit variance."""
    statistic = float((draws**2).sum())
    tail = min(stats.chi2.cdf(statistic, len(draws)), stats.chi2.sf(statistic, len(draws)))
    return 2 * tail


def correlation_p_value(first, second):
    return stats.pearsonr(first, second).pvalue


def passes(p_value_of):
    """A right generator fails a test at 1e-4 once in 10,000 runs: it is given a second chance."""
    return any(p_value_of() > ALARM for _ in range(2))


def test_the_variance_is_the_square_of_the_scale():
    assert passes(lambda: scale_p_value(normal()))


@pytest.mark.parametrize("factor", [0.95, 1.05, 0.5])
def test_another_scale_is_noticed(factor):
    assert scale_p_value(factor * normal()) < ALARM


def test_the_law_is_gaussian():
    assert passes(lambda: stats.kstest(normal(200_000), "norm").pvalue)


def test_laplace_noise_of_the_same_variance_is_noticed():
    size = noise._discrete_laplace(4 * DRAWS, os.urandom, noise.SCALE_BITS) / SCALE
    assert stats.kstest(size / np.sqrt(2), "norm").pvalue < ALARM


def test_two_calls_are_independent():
    assert passes(lambda: correlation_p_value(normal(), normal()))


def test_a_generator_that_repeats_itself_is_noticed():
    first, second = (discrete_gaussian(DRAWS, np.random.default_rng(1).bytes) for _ in range(2))
    assert correlation_p_value(first, second) < ALARM


def test_low_bits_are_uniform():
    """A rounded float sampler has gaps; whole numbers of this size have uniform last bits."""
    draws = discrete_gaussian(64 * 500)
    assert passes(lambda: stats.chisquare(np.bincount(draws & 63, minlength=64)).pvalue)


def test_there_is_as_much_noise_as_was_asked_for():
    assert [len(discrete_gaussian(count)) for count in (0, 1, 7, 10_000)] == [0, 1, 7, 10_000]
    assert discrete_gaussian(3).dtype == np.int64


@pytest.mark.parametrize(("n", "power"), [(SCALE, 1), (SCALE // 3, 1), (2 * SCALE, 2)])
def test_the_exact_comparison_has_the_same_law(n, power):
    """With a margin above every distance each draw is decided with whole numbers alone."""
    draws, probability = 4000, np.exp(-((n / SCALE) ** power) / power)

    def p_value():
        below = noise._below_exp(np.full(draws, n), power, os.urandom, margin=2.0)
        return stats.binomtest(int(below.sum()), draws, probability).pvalue

    assert passes(p_value)


@pytest.mark.parametrize("exponent", [Fraction(1), Fraction(1, 3), Fraction(7, 2**40), 20])
def test_a_uniform_next_to_the_boundary_is_decided_by_more_digits(exponent):
    """The 53 bits below exp(-g) agree with it; the rest of its digits decide."""
    with decimal.localcontext(prec=60) as context:
        exponent = Fraction(exponent)
        ratio = decimal.Decimal(-exponent.numerator) / exponent.denominator
        value = Fraction(ratio.exp(context))
    bits = int(value * 2**117)
    first, more = bits >> 64, bits & (2**64 - 1)
    for offset, below in ((-1, True), (1, False)):
        digits = [(more + offset).to_bytes(8, "big"), b"\0" * 8]
        assert noise._decide(first, exponent, lambda _, left=digits: left.pop(0)) is below


def test_an_exponent_of_zero_is_certain():
    assert noise._decide(2**53 - 1, Fraction(0), os.urandom)
