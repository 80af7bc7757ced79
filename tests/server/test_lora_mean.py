"""The mean of products: by hand, the nearest of its rank, and plain where that is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet_server.federation.strategies import Update, make_strategy
from rootlet_server.federation.strategies.loramean import mean_product


def draw(seed, count=5, rank=3, out=8, fan_in=10):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1, count)
    a, b = rng.normal(size=(count, rank, fan_in)), rng.normal(size=(count, out, rank))
    return a, b, weights / weights.sum()


def true_mean(a, b, weights):
    return np.tensordot(weights, b @ a, axes=1)


def test_by_hand():
    """Two devices of rank 1 that agree: B A = 2 e1 e1^T, in factors 1 * 2 and 2 * 1."""
    a = np.array([[[1.0, 0]], [[2.0, 0]]])
    b = np.array([[[2.0], [0]], [[1.0], [0]]])
    found_a, found_b = mean_product(a, b, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found_b @ found_a, [[2, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(np.mean(b, axis=0) @ np.mean(a, axis=0), [[2.25, 0], [0, 0]])


@given(seed=st.integers(0, 2**31), rank=st.integers(1, 5), count=st.integers(1, 6))
def test_it_is_the_nearest_product_of_its_rank(seed, rank, count):
    """As near as the leading singular values of the full mean: nothing of that rank is nearer."""
    a, b, weights = draw(seed, count, rank)
    mean = true_mean(a, b, weights)
    found_a, found_b = mean_product(a, b, weights)
    assert (found_a.shape, found_b.shape) == (a.shape[1:], b.shape[1:])
    lost = np.linalg.svd(mean, compute_uv=False)[rank:]
    error = np.linalg.norm(found_b @ found_a - mean)
    np.testing.assert_allclose(error, np.linalg.norm(lost), rtol=1e-6, atol=1e-9)
    separate = np.tensordot(weights, b, axes=1) @ np.tensordot(weights, a, axes=1)
    assert error <= np.linalg.norm(separate - mean) + 1e-9


@given(seed=st.integers(0, 2**31))
def test_where_a_is_shared_both_means_are_exact_and_the_same(seed):
    """Why calibrated adapters, whose A is frozen, need none of this."""
    a, b, weights = draw(seed)
    a = np.broadcast_to(a[0], a.shape)
    mean_b = np.tensordot(weights, b, axes=1)
    np.testing.assert_allclose(mean_b @ a[0], true_mean(a, b, weights), atol=1e-12)
    found_a, found_b = mean_product(a, b, weights)
    np.testing.assert_allclose(found_b @ found_a, mean_b @ a[0], atol=1e-8)


def orthogonal(a):
    """Rows of the same length, at right angles: as a round leaves them."""
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return 2 * u @ vt


@pytest.mark.parametrize("seed", range(5))
def test_devices_that_changed_nothing_change_nothing(seed):
    """In the first round too, where B is zero: A must not be lost with the product."""
    a, b, weights = draw(seed)
    start_a = orthogonal(a[0])
    for start_b in (b[0], np.zeros_like(b[0])):
        found_a, found_b = mean_product(
            np.broadcast_to(start_a, a.shape), np.broadcast_to(start_b, b.shape), weights
        )
        np.testing.assert_allclose(found_a, start_a, atol=1e-10)
        np.testing.assert_allclose(found_b, start_b, atol=1e-10)


@given(seed=st.integers(0, 2**31))
def test_the_rows_of_a_are_orthogonal_and_as_long_as_the_mean(seed):
    """B, and with it the step that A takes, is no larger than the product asks for."""
    a, b, weights = draw(seed)
    found_a, found_b = mean_product(a, b, weights)
    length = np.linalg.norm(np.tensordot(weights, a, axes=1)) / np.sqrt(len(found_a))
    np.testing.assert_allclose(found_a @ found_a.T, length**2 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found_b) * length, np.linalg.norm(found_b @ found_a))


def test_factors_that_cancel_on_average_still_have_their_product():
    a, b, _ = draw(1, count=2)
    a[1], b[1] = -a[0], -b[0]
    found_a, found_b = mean_product(a, b, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found_b @ found_a, b[0] @ a[0], atol=1e-9)


def test_a_layer_narrower_than_its_rank():
    a, b, weights = draw(2, count=3, rank=4, out=8, fan_in=2)
    found_a, found_b = mean_product(a, b, weights)
    assert (found_a.shape, found_b.shape) == ((4, 2), (8, 4))
    np.testing.assert_allclose(found_b @ found_a, true_mean(a, b, weights), atol=1e-10)


def test_heads_and_lone_factors_are_averaged():
    rng = np.random.default_rng(3)
    shapes = {"m.lora_A": (2, 5), "m.lora_B": (4, 2), "frozen.lora_B": (4, 2), "head.bias": (3,)}
    received = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    updates = [
        Update(node=node, received=received, num_examples=node + 1, loss=1.0,
               trained={n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
        for node in range(3)
    ]  # fmt: skip
    after = make_strategy("loramean", {}, learning_rate=0.1).aggregate(1, received, updates)
    assert list(after) == list(received)
    weights = np.array([1, 2, 3]) / 6
    for name in ("frozen.lora_B", "head.bias"):
        expected = np.tensordot(weights, [each.trained[name] for each in updates], axes=1)
        np.testing.assert_allclose(after[name], expected, rtol=1e-5)
    mean = sum(
        weight * each.trained["m.lora_B"] @ each.trained["m.lora_A"]
        for weight, each in zip(weights, updates, strict=True)
    )
    lost = np.linalg.svd(mean, compute_uv=False)[2:]
    error = np.linalg.norm(after["m.lora_B"] @ after["m.lora_A"] - mean)
    np.testing.assert_allclose(error, np.linalg.norm(lost), rtol=1e-4)
