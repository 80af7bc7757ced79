"""Named arrays held against their specs: what is an adapter, and what only looks like one."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from rootlet_runtime.errors import AdapterError
from rootlet_runtime.manifest import TensorSpec

Array = npt.NDArray[np.float32]
Arrays = dict[str, Array]


def check_arrays(arrays: Mapping[str, npt.ArrayLike], specs: Iterable[TensorSpec]) -> Arrays:
    """Copies of ``arrays`` in the order of ``specs``, contiguous float32.

    Raises:
        AdapterError: a name is missing or unknown, a shape or dtype differs, or a value is not
            finite.
    """
    specs = tuple(specs)
    expected = {spec.name for spec in specs}
    if arrays.keys() != expected:
        raise AdapterError(
            f"missing tensors {sorted(expected - arrays.keys())}, unknown tensors "
            f"{sorted(arrays.keys() - expected)}; the bundle's manifest lists {len(expected)}"
        )
    return {spec.name: _check_array(np.asarray(arrays[spec.name]), spec) for spec in specs}


def zeros(specs: Iterable[TensorSpec]) -> Arrays:
    """One array of zeros for each spec: how every optimiser state starts."""
    return {spec.name: np.zeros(_closed(spec), np.float32) for spec in specs}


def _check_array(array: npt.NDArray[np.generic], spec: TensorSpec) -> Array:
    if array.dtype != np.float32:
        raise AdapterError(f"{spec.name}: dtype {array.dtype}; must be float32")
    if array.shape != _closed(spec):
        raise AdapterError(f"{spec.name}: shape {array.shape}; must be {_closed(spec)}")
    if not np.isfinite(array).all():
        raise AdapterError(f"{spec.name}: holds NaN or infinity; an adapter is finite")
    return np.array(array, np.float32, order="C")


def _closed(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if size is not None)
