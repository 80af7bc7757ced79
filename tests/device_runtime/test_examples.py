from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, Manifest, TensorSpec, Trainer
from rootlet_runtime.errors import DataError
from rootlet_runtime.examples import check_examples, check_x

X, Y = np.zeros((5, 4), np.float32), np.zeros(5, np.int64)

BAD_X: list[tuple[Any, str]] = [
    (np.zeros((5, 3), np.float32), r"shape \(5, 3\); the bundle takes \(N, 4\)"),
    (np.zeros(4, np.float32), "shape"),
    (np.zeros((5, 4, 1), np.float32), "shape"),
    (np.zeros((0, 4), np.float32), "empty"),
    (np.full((5, 4), np.nan, np.float32), "20 values are NaN or infinite"),
    (np.full((5, 4), np.inf), "NaN or infinite"),
    (np.full((5, 4), 1e300), "beyond the range of float32"),
    (np.zeros((5, 4), np.complex64), "complex64"),
    (np.full((5, 4), "a"), "dtype"),
    (np.full((5, 4), None), "dtype object"),
    ([[1.0], [1.0, 2.0]], "equal shape"),
]
BAD_Y: list[tuple[Any, str]] = [
    (np.zeros(4, np.int64), "x has 5 examples and y has 4"),
    (np.full(5, 3), r"label 3; the bundle knows the labels 0\.\.2"),
    (np.full(5, -1), "label -1"),
    (np.zeros(5), "convert it yourself"),
    (np.zeros((5, 3), np.int64), "shape"),
    (np.full(5, 2**63, np.uint64), "int64 holds"),
]


@pytest.fixture(scope="module")
def manifest(tiny: Callable[[str], tuple[Manifest, Any]]) -> Manifest:
    return tiny("sgd")[0]


@pytest.mark.parametrize(("x", "message"), BAD_X)
def test_unusable_x_is_refused(x: Any, message: str, manifest: Manifest) -> None:
    with pytest.raises(DataError, match=f"^x.*{message}"):
        check_examples(x, Y, manifest)


@pytest.mark.parametrize(("y", "message"), BAD_Y)
def test_unusable_y_is_refused(y: Any, message: str, manifest: Manifest) -> None:
    with pytest.raises(DataError, match=message):
        check_examples(X, y, manifest)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, np.bool_, ">f4"])
def test_safe_casts_are_made(dtype: Any, manifest: Manifest) -> None:
    x, y = check_examples(X.astype(dtype), Y.astype(np.int16), manifest)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert x.flags.c_contiguous


def test_lists_and_strided_views_are_taken(manifest: Manifest) -> None:
    np.testing.assert_array_equal(check_x([[1, 2, 3, 4]], manifest), [[1, 2, 3, 4]])
    wide = np.arange(40, dtype=np.float32).reshape(5, 8)
    assert check_x(wide[:, ::2], manifest).flags.c_contiguous


def test_images_and_tokens_keep_their_range(manifest: Manifest) -> None:
    image = replace(manifest, x=TensorSpec(name="x", dtype="uint8", shape=(None, 4)))
    assert check_x(np.full((1, 4), 255, np.int64), image).dtype == np.uint8
    for value in (256, -1):
        with pytest.raises(DataError, match=r"uint8 holds 0\.\.255"):
            check_x(np.full((1, 4), value), image)
    with pytest.raises(DataError, match="convert it yourself"):
        check_x(X, image)


def test_regression_takes_finite_targets(manifest: Manifest) -> None:
    target = TensorSpec(name="y", dtype="float32", shape=(None, 3))
    regression = replace(manifest, task="regression", y=target)
    check_examples(X, np.full((5, 3), 1e6), regression)
    with pytest.raises(DataError, match="y: 15 values are NaN"):
        check_examples(X, np.full((5, 3), np.nan), regression)


def test_every_door_of_the_trainer_checks(bundle: Bundle) -> None:
    trainer = Trainer(bundle)
    bad = np.full((5, 4), np.nan, np.float32)
    for call in (
        lambda: trainer.predict(bad),
        lambda: trainer.evaluate(bad, Y),
        lambda: trainer.evaluate(X, Y, batch_size=33),
        lambda: trainer.predict(X, batch_size=0),
    ):
        with pytest.raises(DataError):
            call()
