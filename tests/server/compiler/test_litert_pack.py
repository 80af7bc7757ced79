"""Packing of constants into int8: exact, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rootlet_server.compiler.int8 import quantize_weight
from rootlet_server.compiler.litert_pack import as_int8


@pytest.mark.parametrize("shape", [(16, 32), (32, 16, 1, 3), (8, 3, 3, 8)])
def test_a_quantised_weight_is_found_again_to_the_last_bit(shape):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for dimension in range(len(shape)):
            q, scale = quantize_weight(torch.randn(shape, generator=generator), dimension)
            values = (q.float() * scale).numpy()
            found_q, found_scale, along = as_int8(values)
            per_slice = found_scale.reshape([-1 if d == along else 1 for d in range(len(shape))])
            np.testing.assert_array_equal(found_q.astype(np.float32) * per_slice, values)


def test_whole_numbers_have_the_scale_one():
    values = np.arange(-128 + 1, 128, dtype=np.float32).repeat(2)
    q, scale, dimension = as_int8(values)
    np.testing.assert_array_equal(q, values)
    assert (scale.tolist(), dimension) == ([1.0], 0)


def test_a_slice_of_zeros_has_some_scale():
    q, scale = quantize_weight(torch.randn(16, 32), 0)
    values = (q.float() * scale).numpy()
    values[3] = 0
    found_q, found_scale, _ = as_int8(values)
    np.testing.assert_array_equal(found_q * found_scale[:, None], values)
    assert (found_scale > 0).all()


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 1e-4])
def test_what_is_not_exact_stays_in_float(spoil):
    q, scale = quantize_weight(torch.randn(16, 32), 0)
    values = (q.float() * scale).numpy()
    values[2, 5] += spoil
    assert as_int8(values) is None


def test_random_weights_stay_in_float():
    assert as_int8(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)) is None


def test_small_constants_stay_in_float():
    assert as_int8(np.ones((4, 4), np.float32)) is None
