import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rootlet_runtime import TensorSpec
from rootlet_runtime.errors import DataError
from rootlet_runtime.row_codec import RowCodec

FLOATS = TensorSpec(name="x", dtype="float32", shape=(None, 3, 4))
ROWS = arrays(np.float32, (5, 3, 4), elements=st.floats(-1e4, 1e4, width=32))


@given(ROWS)
def test_exact_rows_come_back_bit_for_bit(rows: np.ndarray) -> None:
    codec = RowCodec(FLOATS)
    packed = codec.encode(rows)
    assert packed.shape == (5, codec.row_bytes) == (5, 48)
    assert codec.decode(packed).tobytes() == rows.tobytes()


@given(ROWS)
def test_half_precision_rounds_by_a_share_of_each_value(rows: np.ndarray) -> None:
    codec = RowCodec(FLOATS, "float16")
    decoded = codec.decode(codec.encode(rows))
    assert codec.row_bytes == 24
    assert (np.abs(decoded - rows) <= np.maximum(np.abs(rows) * 2**-11, 2**-25)).all()


@given(ROWS)
def test_eight_bits_round_by_a_share_of_the_rows_range(rows: np.ndarray) -> None:
    codec = RowCodec(FLOATS, "uint8")
    decoded = codec.decode(codec.encode(rows))
    assert codec.row_bytes == 12 + 8
    span = np.ptp(rows.reshape(5, -1), axis=1)[:, None, None].astype(np.float64)
    rounding = 4 * np.finfo(np.float32).eps * np.abs(rows).max()
    assert (np.abs(decoded - rows) <= span / 510 + rounding).all()


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_integers_are_exact_in_every_storage(dtype: str) -> None:
    rows = np.array([[0, 1], [200, 255]], dtype)
    for storage in ("exact", "float16", "uint8"):
        codec = RowCodec(TensorSpec(name="x", dtype=dtype, shape=(None, 2)), storage)
        np.testing.assert_array_equal(codec.decode(codec.encode(rows)), rows)


def test_a_label_is_a_row_of_one_value() -> None:
    codec = RowCodec(TensorSpec(name="y", dtype="int64", shape=(None,)))
    np.testing.assert_array_equal(codec.decode(codec.encode(np.array([3, 1]))), [3, 1])


def test_what_half_precision_cannot_hold_is_refused() -> None:
    rows = np.full((1, 3, 4), 1e6, np.float32)
    with pytest.raises(DataError, match=r"beyond float16's 65504.*uint8"):
        RowCodec(FLOATS, "float16").encode(rows)
    with pytest.raises(DataError, match="must be one of exact, float16, uint8"):
        RowCodec(FLOATS, "int4")  # type: ignore[arg-type]
