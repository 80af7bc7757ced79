"""Smaller updates: what a device sends of trained minus received, and what is read of it.

`int8` and `int16` quantise stochastically, each tensor u by a scale of its own:

    L = 2^(bits - 1) - 1,  s = max|u| / L,  q = floor(u / s + r),  r uniform in [0, 1)

so that the mean of s q over r is u (unbiased: the errors of many devices average out), every error
is below s, and its variance at most s^2 / 4 (Alistarh et al. 2017). `top-k` sends the share of the
values of all tensors together that are largest by magnitude, exactly, and leaves the others zero:
it is biased, its error is the least for that many values, and what was left out is forgotten, not
sent later (Aji & Heafield 2017, without their memory).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rootlet.errors import RecordError
from rootlet.record_checks import require

Arrays = Mapping[str, np.ndarray]

UPDATE = "update"
"""The record's name in a `train` reply."""

BITS = {"int8": 8, "int16": 16}
TOP_K = "top-k"
KINDS = (*BITS, TOP_K)

_SCALES, _INDEX, _VALUES = "#scale", "#index", "#value"  # no module path holds a #


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How updates travel.

    Attributes:
        kind: `int8`, `int16` or `top-k`.
        top_k: Share of the values that `top-k` sends, in (0, 1]; 0 for the others.

    Raises:
        RecordError: A value outside its bounds.
    """

    kind: str
    top_k: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "compression", self.kind, f"one of {', '.join(KINDS)}")
        if self.kind == TOP_K:
            require(0 < self.top_k <= 1, "top_k", self.top_k, "above 0 and at most 1")
        else:
            require(self.top_k == 0, "top_k", self.top_k, f"0 where compression is {self.kind}")

    def encode(self, update: Arrays, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays that travel.

        Args:
            update: Trained minus received, float32, finite.
            rng: Rounds, where something is rounded.
        """
        if self.kind == TOP_K:
            flat = _flat(update)
            count = _count(len(flat), self.top_k)
            chosen = np.sort(np.argpartition(np.abs(flat), len(flat) - count)[-count:])
            return {_INDEX: chosen.astype(np.uint32), _VALUES: flat[chosen]}
        bits = BITS[self.kind]
        scales = {name: _scale(value, bits) for name, value in update.items()}
        codes = {name: _quantised(value, scales[name], bits, rng) for name, value in update.items()}
        return {**codes, _SCALES: np.array(list(scales.values()), np.float32)}

    def layout(self, like: Arrays) -> dict[str, np.ndarray]:
        """Arrays of the names, shapes and dtypes that :meth:`encode` makes; they take no memory."""
        if self.kind == TOP_K:
            count = _count(sum(value.size for value in like.values()), self.top_k)
            return {_INDEX: _of(np.uint32, (count,)), _VALUES: _of(np.float32, (count,))}
        dtype = np.dtype(self.kind)
        return {
            **{name: _of(dtype, value.shape) for name, value in like.items()},
            _SCALES: _of(np.float32, (len(like),)),
        }

    def decode(self, arrays: Arrays, like: Arrays) -> dict[str, np.ndarray]:
        """The update in arrays that are laid out as :meth:`layout` says; float32.

        Args:
            arrays: What travelled, from nobody who is trusted.
            like: The received adapter: names, in order, and shapes.

        Raises:
            RecordError: A negative scale, or indices that do not go up or go too far.
        """
        if self.kind == TOP_K:
            return _spread(arrays[_INDEX], arrays[_VALUES], like)
        scales = arrays[_SCALES]
        require(bool((scales >= 0).all()), "a scale", float(scales.min()), "at least 0")
        with np.errstate(over="ignore"):  # the caller looks for what is not finite
            return {
                name: scale * arrays[name].astype(np.float32)
                for name, scale in zip(like, scales, strict=True)
            }


def _scale(update: np.ndarray, bits: int) -> np.float32:
    """The least float32 s with max|u| <= s L, so that no code leaves its range."""
    most = 2 ** (bits - 1) - 1
    peak = float(np.abs(update).max(initial=0.0))
    scale = np.float32(peak / most)
    return scale if float(scale) * most >= peak else np.nextafter(scale, np.float32(np.inf))


def _quantised(
    update: np.ndarray, scale: np.float32, bits: int, rng: np.random.Generator
) -> np.ndarray:
    dtype = np.dtype(f"int{bits}")
    if scale == 0:
        return np.zeros(update.shape, dtype)
    exact = update.astype(np.float64) / float(scale)
    return np.floor(exact + rng.random(update.shape)).astype(dtype)


def _flat(update: Arrays) -> np.ndarray:
    return np.concatenate([value.ravel() for value in update.values()])


def _count(size: int, share: float) -> int:
    return min(size, max(1, math.ceil(share * size)))


def _of(dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _spread(index: np.ndarray, values: np.ndarray, like: Arrays) -> dict[str, np.ndarray]:
    size = sum(value.size for value in like.values())
    if not (np.diff(index.astype(np.int64)) > 0).all() or int(index[-1]) >= size:
        raise RecordError(f"the indices of {size} values must go up, and stay below {size}")
    flat = np.zeros(size, np.float32)
    flat[index] = values
    ends = np.cumsum([value.size for value in like.values()])[:-1]
    parts = np.split(flat, ends)
    return {
        name: part.reshape(value.shape)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }
