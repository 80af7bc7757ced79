"""The window of a convolution: an adapter there reads patches instead of single positions.

LoRA on a k x k convolution is a convolution with r filters of the layer's own window, then a 1x1
convolution (as in peft's ``Conv2d``): with h_p the patch at output position p, flattened in the
order of the layer's weight, ``a_p = W h_p + b + s B A h_p``. Nothing else changes for credit
assignment: ``dB = s sum_p delta_p (A h_p)^T``.

Shape legend: N examples, C channels, P positions, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import fx

CONVOLVE = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which inputs an output position sees, along each spatial dimension.

    Attributes:
        kernel, stride, dilation: as in ``torch.nn.Conv2d``.
        before, after: zeros added at either end.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position reads its own input position and nothing else."""
        sizes = {*self.kernel, *self.stride}
        return sizes == {1} and not any((*self.before, *self.after))

    def padded(self, h: Tensor) -> Tensor:
        """The inputs with their zeros around them."""
        edges = [n for pair in zip(self.before, self.after, strict=True) for n in pair]
        pairs = list(zip(edges[::2], edges[1::2], strict=True))[::-1]  # pad starts at the last
        return torch.nn.functional.pad(h, [n for pair in pairs for n in pair]) if any(edges) else h

    def project(self, h: Tensor, a_in_r: Tensor) -> Tensor:
        """A h_p at every position by convolution, [N, r, ...].

        Args:
            h: [N, C, ...].
            a_in_r: [C * kernel, r].
        """
        filters = a_in_r.t().reshape(a_in_r.shape[1], h.shape[1], *self.kernel)
        if self.before == self.after:
            inputs, padding = h, self.before
        else:
            inputs, padding = self.padded(h), tuple(0 for _ in self.before)
        convolve: Any = CONVOLVE[len(self.kernel)]
        z: Tensor = convolve(inputs, filters, None, self.stride, padding, self.dilation)
        return z

    def patches(self, h: Tensor) -> Tensor:
        """h_p at every position, [N, C * kernel, ...]: what a trained A needs to have stored."""
        padded = self.padded(h)
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                padded.shape[2:], self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        parts = []
        for offset in product(*(range(k) for k in self.kernel)):
            part = padded
            for d, i in enumerate(offset):
                start, stride = i * self.dilation[d], self.stride[d]
                stop = start + stride * (sizes[d] - 1) + 1
                part = part[(slice(None),) * (d + 2) + (slice(start, stop, stride),)]
            parts.append(part)
        return torch.stack(parts, 2).flatten(1, 2)


def find_window(node: fx.Node, kernel: tuple[int, ...]) -> Window:
    """The window of a traced convolution."""
    names = ("stride", "padding", "dilation")
    found: dict[str, Any] = dict(zip(names, node.args[3:6], strict=False))
    found |= {name: node.kwargs[name] for name in names if name in node.kwargs}
    stride, dilation = (_each(found.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    padding = found.get("padding", 0)
    if padding == "same":
        total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        before = tuple(n // 2 for n in total)
        after = tuple(n - n // 2 for n in total)
    else:
        before = after = _each(0 if padding == "valid" else padding, len(kernel))
    return Window(kernel=kernel, stride=stride, dilation=dilation, before=before, after=after)


def _each(value: int | list[int], dims: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * (dims // len(values)))
