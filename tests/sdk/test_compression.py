"""Compressed updates: by hand, within their bounds, right on average, and hostile ones refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootlet.compression import BITS, Compression
from rootlet.errors import RecordError

SHAPES = {"a.lora_B": (7, 3), "head.bias": (5,), "head.weight": (5, 11)}


def draw(seed, spread=3.0):
    """Tensors whose sizes differ by powers of ten."""
    rng = np.random.default_rng(seed)
    return {
        name: (10 ** rng.uniform(-spread, spread) * rng.normal(size=shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def journey(compression, update, rng=None):
    sent = compression.encode(update, rng or np.random.default_rng(0))
    expected = compression.layout(update)
    assert {n: (a.shape, a.dtype) for n, a in sent.items()} == {
        n: (a.shape, a.dtype) for n, a in expected.items()
    }
    return compression.decode(sent, update)


def test_by_hand():
    """max 127 and L = 127: the scale is 1, and whole numbers survive any rounding."""
    update = {"w": np.array([127, -3, 0, 64], np.float32)}
    sent = Compression(kind="int8").encode(update, np.random.default_rng(0))
    assert sent["#scale"].tolist() == [1.0]
    assert sent["w"].tolist() == [127, -3, 0, 64]
    update = {"w": np.array([1, -9, 3], np.float32), "v": np.array([[-4, 0.5]], np.float32)}
    sent = Compression(kind="top-k", top_k=0.4).encode(update, np.random.default_rng(0))
    assert (sent["#index"].tolist(), sent["#value"].tolist()) == ([1, 3], [-9, -4])
    found = Compression(kind="top-k", top_k=0.4).decode(sent, update)
    assert {n: a.tolist() for n, a in found.items()} == {"w": [0, -9, 0], "v": [[-4, 0]]}


@pytest.mark.parametrize("kind", BITS)
@given(seed=st.integers(0, 2**31))
def test_every_error_is_below_the_scale(kind, seed):
    update = draw(seed)
    found = journey(Compression(kind=kind), update, np.random.default_rng(seed))
    most = 2 ** (BITS[kind] - 1) - 1
    for name, value in update.items():
        scale = np.abs(value).max() / most
        # one float32 rounding of the product beside it
        assert np.abs(found[name] - value).max() <= scale * (1 + 1e-5) + np.spacing(
            np.abs(value).max()
        )


@pytest.mark.parametrize("kind", BITS)
def test_the_rounding_is_right_on_average(kind):
    """Unbiased within five standard errors; rounding to the nearest, the control, is not."""
    update = {"w": np.linspace(-1, 1, 257, dtype=np.float32) ** 3}
    rng, draws = np.random.default_rng(1), 4000
    compression = Compression(kind=kind)
    found = np.mean([compression.decode(compression.encode(update, rng), update)["w"]
                     for _ in range(draws)], axis=0, dtype=np.float64)  # fmt: skip
    scale = 1 / (2 ** (BITS[kind] - 1) - 1)
    error = np.abs(found - update["w"]).max()
    assert error < 5 * 0.5 * scale / np.sqrt(draws) + 1e-7  # the deviation is at most scale / 2
    nearest = scale * np.round(update["w"] / scale)
    if kind == "int8":
        assert np.abs(nearest - update["w"]).max() > 5 * error


@given(seed=st.integers(0, 2**31), share=st.floats(0.001, 1))
def test_top_k_keeps_the_largest_exactly(seed, share):
    update = draw(seed)
    found = journey(Compression(kind="top-k", top_k=share), update)
    flat = np.concatenate([value.ravel() for value in update.values()])
    kept = np.concatenate([value.ravel() for value in found.values()])
    count = max(1, int(np.ceil(share * flat.size)))
    assert (kept != 0).sum() <= count
    np.testing.assert_array_equal(kept[kept != 0], flat[kept != 0])
    assert np.abs(flat[kept == 0]).max(initial=0) <= np.abs(kept[kept != 0]).min()
    left = np.square(flat[kept == 0].astype(np.float64)).sum()
    total = np.square(flat.astype(np.float64)).sum()
    assert left <= (1 - count / flat.size) * total * (1 + 1e-9) + 1e-30


def test_an_update_of_nothing_is_nothing():
    nothing = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    for compression in (Compression(kind="int8"), Compression(kind="top-k", top_k=0.1)):
        assert not any(value.any() for value in journey(compression, nothing).values())


@pytest.mark.parametrize("tiny", [1e-45, 1e-38, 3.4e38])
def test_the_ends_of_float32(tiny):
    update = {"w": np.array([tiny, -tiny, 0], np.float32)}
    found = journey(Compression(kind="int8"), update)["w"]
    assert np.isfinite(found).all()
    assert np.abs(found - update["w"]).max() <= max(tiny / 127 * 1.01, 1.5e-45 * 128)


def test_hostile_arrays_are_refused():
    like = draw(0)
    quantised = Compression(kind="int8")
    sent = quantised.encode(like, np.random.default_rng(0))
    with pytest.raises(RecordError, match="a scale is -1"):
        quantised.decode({**sent, "#scale": np.full(3, -1, np.float32)}, like)
    with pytest.raises(RecordError, match="a scale is nan"):
        quantised.decode({**sent, "#scale": np.full(3, np.nan, np.float32)}, like)
    largest = Compression(kind="top-k", top_k=0.03)
    values = np.ones(3, np.float32)
    for index in ([0, 0, 1], [2, 1, 3], [0, 1, 81], [0, 1, 2**32 - 1]):
        hostile = {"#index": np.array(index, np.uint32), "#value": values}
        with pytest.raises(RecordError, match="must go up, and stay below 81"):
            largest.decode(hostile, like)


def test_the_bytes_that_travel():
    """A quarter, a half, and eight bytes for each value that is kept."""
    like = {"w": np.zeros((100, 100), np.float32)}
    sizes = [
        sum(array.nbytes for array in Compression(**options).layout(like).values())
        for options in ({"kind": "int8"}, {"kind": "int16"}, {"kind": "top-k", "top_k": 0.05})
    ]
    assert sizes == [10_004, 20_004, 4_000]
