"""ONNX operators that move and pick values, in torch; sizes stay numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    Attributes = Mapping[str, Any]

SIZES = np.ndarray


def ints(value: Any) -> list[int]:
    """A size as plain numbers."""
    return [int(each) for each in np.asarray(value).reshape(-1)]


def axes_of(a: Attributes, given: Any) -> list[int] | None:
    """Axes, by attribute or by input; None where neither names any."""
    if given is not None:
        return ints(given)
    return ints(a["axes"]) if "axes" in a else None


def as_tensor(value: Any) -> Tensor:
    """A size as a tensor; a tensor as it is."""
    return value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def reshape(a: Attributes, x: Any, shape: Any) -> Any:
    """Reshape."""
    wanted = ints(shape)
    if not a.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def transpose(a: Attributes, x: Tensor) -> Tensor:
    """Transpose."""
    return x.permute(a.get("perm", list(range(x.dim()))[::-1]))


def unsqueeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    """Unsqueeze."""
    chosen = axes_of(a, axes) or []
    rank = len(x.shape) + len(chosen)
    for axis in sorted(each % rank for each in chosen):
        x = np.expand_dims(x, axis) if isinstance(x, SIZES) else x.unsqueeze(axis)
    return x


def squeeze(a: Attributes, x: Any, axes: Any = None) -> Any:
    """Squeeze."""
    chosen = axes_of(a, axes)
    rank = len(x.shape)
    if chosen is None:
        chosen = [i for i, size in enumerate(x.shape) if size == 1]
    for axis in sorted((each % rank for each in chosen), reverse=True):
        x = np.squeeze(x, axis) if isinstance(x, SIZES) else x.squeeze(axis)
    return x


def expand(_: Attributes, x: Any, shape: Any) -> Tensor:
    """Expand."""
    values = as_tensor(x)
    return values.expand(torch.broadcast_shapes(tuple(values.shape), tuple(ints(shape))))


def concat(a: Attributes, *parts: Any) -> Any:
    """Concat."""
    if all(isinstance(part, SIZES) for part in parts):
        return np.concatenate([np.atleast_1d(part) for part in parts], a["axis"])
    return torch.cat([as_tensor(part) for part in parts], a["axis"])


def split(a: Attributes, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    """Split."""
    axis = a.get("axis", 0)
    if sizes is None:
        return tuple(x.chunk(a["num_outputs"], axis))
    return tuple(torch.split(x, ints(sizes), axis))


def window(
    _: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Any:
    """Slice, forwards."""
    first, last = ints(starts), ints(ends)
    chosen = list(range(len(first))) if axes is None else ints(axes)
    strides = [1] * len(first) if steps is None else ints(steps)
    window = [slice(None)] * len(x.shape)
    for axis, start, end, step in zip(chosen, first, last, strides, strict=True):
        if step < 0:
            raise NotImplementedError("Slice backwards")
        window[axis] = slice(start, end, step)
    return x[tuple(window)]


def gather(a: Attributes, x: Any, indices: Any) -> Any:
    """Gather."""
    axis = a.get("axis", 0)
    if isinstance(x, SIZES) and isinstance(indices, SIZES):
        return np.take(x, indices, axis)
    x = as_tensor(x)
    if isinstance(indices, SIZES) and indices.ndim == 0:
        return x.select(axis, int(indices))
    index = as_tensor(indices).long()
    if axis == 0 and x.dim() == 2:
        return F.embedding(index, x)
    flat = x.index_select(axis, index.reshape(-1))
    axis %= x.dim()
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_elements(a: Attributes, x: Tensor, index: Tensor) -> Tensor:
    """GatherElements."""
    return x.gather(a.get("axis", 0), index.long())


def scatter_elements(a: Attributes, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements, plain or adding."""
    axis, how = a.get("axis", 0), a.get("reduction", "none")
    if how == "add":
        return x.scatter_add(axis, index.long(), updates)
    if how != "none":
        raise NotImplementedError(f"ScatterElements with reduction {how}")
    return x.scatter(axis, index.long(), updates)


def constant_of_shape(a: Attributes, shape: Any) -> Any:
    """ConstantOfShape."""
    value = np.zeros(1, np.float32) if "value" not in a else a["value"]
    if value.dtype == np.int64 and len(ints(shape)) <= 1:
        return np.full(ints(shape), value[0])
    return torch.full(ints(shape), value.item(), dtype=torch.from_numpy(value).dtype)
