"""Examples as rows of bytes: exactly, in half precision, or in eight bits with a scale a row.

| storage | bytes of a float32 value | largest error of a value |
|---|---|---|
| ``exact`` | 4 | none |
| ``float16`` | 2 | 2^-11 of its size (above 6.1e-5); beyond 65504 is refused |
| ``uint8`` | 1, and 8 a row | 1/510 of its row's range |

Integers and bytes are always stored exactly.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from rootlet_runtime.errors import DataError
from rootlet_runtime.manifest import TensorSpec

AnyArray = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Storage = Literal["exact", "float16", "uint8"]

_LEVELS = 255


@dataclass(frozen=True)
class RowCodec:
    """Turns arrays [N, ...] of one spec into bytes [N, row_bytes], and back.

    Args:
        spec: dtype and shape; the first dimension is open.
        storage: how float32 values are kept.

    Raises:
        DataError: an unknown storage.
    """

    spec: TensorSpec
    storage: Storage = "exact"

    def __post_init__(self) -> None:
        if self.storage not in get_args(Storage):
            names = ", ".join(get_args(Storage))
            raise DataError(f"storage {self.storage!r}: must be one of {names}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        if self._kind == "uint8":
            return self.spec.elements + 8
        return self.spec.elements * self._stored_dtype.itemsize

    def encode(self, rows: AnyArray) -> Bytes:
        """[N, ...] in the spec's dtype to [N, row_bytes].

        Raises:
            DataError: a value beyond the range of float16.
        """
        flat = np.ascontiguousarray(rows, self.spec.dtype).reshape(len(rows), self.spec.elements)
        if self._kind == "uint8":
            return _quantize(flat)
        with np.errstate(over="ignore"):
            stored = flat.astype(self._stored_dtype)
        if stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise DataError(
                f"{self.spec.name}: {np.abs(flat).max():.4g} is beyond float16's 65504; "
                "scale the data, or use storage='uint8' or 'exact'"
            )
        return stored.view(np.uint8).reshape(len(rows), self.row_bytes)

    def decode(self, packed: Bytes) -> AnyArray:
        """[N, row_bytes] to [N, ...] in the spec's dtype."""
        packed = np.ascontiguousarray(packed)
        if self._kind == "uint8":
            flat: AnyArray = _dequantize(packed)
        else:
            flat = packed.view(self._stored_dtype)
        shape = tuple(size for size in self.spec.shape if size is not None)
        return np.ascontiguousarray(flat, self.spec.dtype).reshape(len(packed), *shape)

    @property
    def _kind(self) -> Storage:
        return self.storage if self.spec.dtype == "float32" else "exact"

    @property
    def _stored_dtype(self) -> np.dtype[Any]:
        return np.dtype("<f2" if self._kind == "float16" else self.spec.dtype)


def _quantize(flat: npt.NDArray[np.float32]) -> Bytes:
    low = flat.min(axis=1, keepdims=True).astype(np.float64)
    scale = (flat.max(axis=1, keepdims=True) - low) / _LEVELS
    safe = np.where(scale > 0, scale, 1.0)
    q = np.rint((flat - low) / safe).clip(0, _LEVELS).astype(np.uint8)
    ends = np.concatenate([low, scale], axis=1).astype("<f4")
    return np.concatenate([ends.view(np.uint8).reshape(len(flat), 8), q], axis=1)


def _dequantize(packed: Bytes) -> npt.NDArray[np.float32]:
    ends = np.ascontiguousarray(packed[:, :8]).view("<f4")
    flat: npt.NDArray[np.float32] = ends[:, :1] + packed[:, 8:].astype(np.float32) * ends[:, 1:]
    return flat
