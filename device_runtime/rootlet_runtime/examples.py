"""Examples from the app, held against the bundle's specs before a graph sees them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rootlet_runtime.batches import AnyArray
from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import Manifest, TensorSpec


def check_x(x: npt.ArrayLike, manifest: Manifest) -> AnyArray:
    """``x`` in the bundle's dtype.

    Raises:
        DataError: empty, of another shape or kind, or not finite.
    """
    return _check_array("x", x, manifest.x)


def check_examples(
    x: npt.ArrayLike, y: npt.ArrayLike, manifest: Manifest
) -> tuple[AnyArray, AnyArray]:
    """``x`` and ``y`` in the bundle's dtypes.

    Raises:
        DataError: as for :func:`check_x`; or of different lengths, or a label outside ``[0,
            num_outputs)``.
    """
    checked_x = check_x(x, manifest)
    checked_y = _check_array("y", y, manifest.y)
    if len(checked_x) != len(checked_y):
        raise DataError(
            f"x has {len(checked_x)} examples and y has {len(checked_y)}; give one y each"
        )
    if manifest.task == "classification":
        low, high = int(checked_y.min()), int(checked_y.max())
        if low < 0 or high >= manifest.num_outputs:
            wrong = low if low < 0 else high
            raise DataError(
                f"y: label {wrong}; the bundle knows the labels 0..{manifest.num_outputs - 1}"
            )
    return checked_x, checked_y


def check_batch_size(batch_size: int, manifest: Manifest) -> int:
    """A batch size that the graphs were compiled for.

    Raises:
        DataError: not an integer in ``1..max_batch``.
    """
    if not _is_integer(batch_size) or not 1 <= batch_size <= manifest.max_batch:
        raise DataError(f"batch_size {batch_size}: must be an integer in 1..{manifest.max_batch}")
    return int(batch_size)


def check_epochs(epochs: int) -> int:
    """A number of passes over the data.

    Raises:
        DataError: not an integer of at least 1.
    """
    if not _is_integer(epochs) or epochs < 1:
        raise DataError(f"epochs {epochs}: must be an integer of at least 1")
    return int(epochs)


def check_learning_rate(learning_rate: float) -> float:
    """A learning rate that float32 can hold.

    Raises:
        DataError: not a number, not positive, or not finite.
    """
    try:
        rate = float(learning_rate)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"learning_rate {learning_rate!r}: must be a number") from error
    if not 0 < rate <= float(np.finfo(np.float32).max):
        raise DataError(f"learning_rate {rate}: must be positive and finite in float32")
    return rate


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_array(name: str, value: npt.ArrayLike, spec: TensorSpec) -> AnyArray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name}: not an array ({error}); give rows of equal shape") from error
    expected = ", ".join("N" if size is None else str(size) for size in spec.shape)
    if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]:
        raise DataError(f"{name}: shape {array.shape}; the bundle takes ({expected})")
    if not len(array):
        raise DataError(f"{name}: empty; give at least one example")
    return _cast(name, array, np.dtype(spec.dtype))


def _cast(name: str, array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    if array.dtype.kind not in "buif":
        raise DataError(f"{name}: dtype {array.dtype}; the bundle takes {dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{name}: {count} values are NaN or infinite; drop or repair those examples"
        )
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f" and dtype.kind != "f":
        raise DataError(
            f"{name}: dtype {array.dtype}, but the bundle takes {dtype}; convert it yourself, "
            "so that rounding is your choice"
        )
    return _cast_values(name, array, dtype)


def _cast_values(name: str, array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """A change of width: refused where a value would change by more than rounding."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array.astype(dtype))
    if dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise DataError(f"{name}: a value is beyond the range of {dtype}; scale the data")
    elif (cast != array).any():
        bounds = np.iinfo(dtype)
        raise DataError(
            f"{name}: values {array.min()}..{array.max()} in {array.dtype}; "
            f"{dtype} holds {bounds.min}..{bounds.max}"
        )
    return cast
