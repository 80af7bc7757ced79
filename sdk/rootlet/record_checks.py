"""What requests and replies check when they are made."""

from collections.abc import Mapping

import numpy as np

from rootlet.errors import RecordError


def require(holds: bool, name: str, value: object, bound: str) -> None:
    """Refuse a value that is out of bounds.

    Raises:
        RecordError: names it, the value and the bound.
    """
    if not holds:
        raise RecordError(f"{name} is {value!r:.100}; it must be {bound}")


def check_adapter(adapter: Mapping[str, np.ndarray]) -> None:
    """Refuse an adapter without arrays, or with one that is not float32.

    Raises:
        RecordError: names the array.
    """
    require(bool(adapter), "adapter", dict(adapter), "at least one array")
    for name, array in adapter.items():
        dtype = getattr(array, "dtype", type(array).__name__)
        require(dtype == np.float32, f"dtype of {name!r:.100}", str(dtype), "float32")
