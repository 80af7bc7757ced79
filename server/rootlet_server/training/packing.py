"""Optimiser state as a JSON skeleton and tensors by name: no pickle, for any optimiser.

A tensor becomes ``{"tensor": name, "shape": ..., "dtype": ..., "stride": ...}``; tuples and
non-string keys keep their kind, so that what is read back is what was written. The strides are kept
because products of the same numbers in another layout round differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.training.errors import BaseCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


def pack(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """The skeleton of a value; its tensors go to ``tensors`` under names that begin with prefix.

    Raises:
        BaseCheckpointError: something that is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        tensors[prefix] = value
        dtype = str(value.dtype).removeprefix("torch.")
        return {
            "tensor": prefix, "shape": list(value.shape), "dtype": dtype,
            "stride": list(value.stride()),
        }  # fmt: skip
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [pack(v, f"{prefix}/{n}", tensors) for n, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        pairs = [
            [pack(k, f"{prefix}/key{n}", tensors), pack(v, f"{prefix}/{n}", tensors)]
            for n, (k, v) in enumerate(value.items())
        ]
        return {"dict": pairs}
    raise BaseCheckpointError(
        f"{prefix} is a {type(value).__name__}, which a checkpoint cannot hold. Use an optimiser "
        "whose state is tensors and numbers."
    )


def unpack(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value of a skeleton, with its tensors put in."""
    if isinstance(skeleton, list):
        return [unpack(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "tuple" in skeleton:
        return tuple(unpack(item, tensors) for item in skeleton["tuple"])
    return {unpack(k, tensors): unpack(v, tensors) for k, v in skeleton["dict"]}


def blank_tensors(
    skeleton: Any,
    make: Callable[[str, tuple[int, ...], tuple[int, ...], torch.dtype], Tensor],
) -> dict[str, Tensor]:
    """A tensor to read into for each one of a skeleton, made by name, shape, stride and dtype."""
    if isinstance(skeleton, list):
        parts = [blank_tensors(item, make) for item in skeleton]
    elif isinstance(skeleton, dict) and "tensor" in skeleton:
        name, sizes = skeleton["tensor"], (tuple(skeleton["shape"]), tuple(skeleton["stride"]))
        return {name: make(name, *sizes, DTYPES[skeleton["dtype"]])}
    elif isinstance(skeleton, dict):
        inside = skeleton.get("tuple", skeleton.get("dict", []))
        parts = [blank_tensors(inside, make)]
    else:
        return {}
    return {name: tensor for part in parts for name, tensor in part.items()}
