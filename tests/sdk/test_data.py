"""Examples from a file: what is read, and what is refused."""

import numpy as np
import pytest

from rootlet.data import ArrayData, load_npz
from rootlet.store import is_held_out
from rootlet_runtime.errors import DataError


def test_a_file_comes_back_as_it_was_written(tmp_path):
    x, y = np.eye(4, dtype=np.float32), np.arange(4)
    np.savez(tmp_path / "data.npz", x=x, y=y, another=np.zeros(2))
    read_x, read_y = load_npz(tmp_path / "data.npz")
    np.testing.assert_array_equal(read_x, x)
    np.testing.assert_array_equal(read_y, y)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((3, 2))},
        {"y": np.zeros(3)},
        {"x": np.zeros((3, 2)), "y": np.zeros(2)},
        {"x": np.zeros(()), "y": np.zeros(())},
        {"x": np.array([object()] * 3), "y": np.zeros(3)},
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=r"data\.npz"):
        load_npz(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"numpy\.savez"):
        load_npz(path)


def test_a_single_array_is_refused(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"numpy\.savez"):
        load_npz(tmp_path / "data.npz")


def test_a_split_holds_out_what_a_store_would():
    x, y = np.arange(20.0), np.arange(20)
    data = ArrayData.split((x, y))
    expected = [number for number in range(20) if is_held_out(number, 5)]
    assert data.holdout()[1].tolist() == expected
    assert sorted(data.train()[1].tolist() + expected) == list(range(20))
