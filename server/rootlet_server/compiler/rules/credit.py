"""What a rule is given and what it returns: a batch, and every example's gradient in factors.

Shape legend: N examples, P positions, C adapted channels, r rank (or input features, for A).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a device feeds: x [N, ...], y [N] or [N, K], and step [] counted from 1."""

    x: Tensor
    y: Tensor
    step: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    """Per-example gradients as products, ``g_n = sum_p left_{n,p} right_{n,p}^T``.

    Attributes:
        left: [N, C] or [N, P, C].
        right: [N, r] or [N, P, r]; None for a bias, whose ``g_n = sum_p left_{n,p}``.
    """

    left: Tensor
    right: Tensor | None

    def total(self) -> Tensor:
        """``sum_n g_n``, [C, r] or [C]."""
        left = self.left.reshape(-1, self.left.shape[-1])
        if self.right is None:
            return left.sum(0)
        return left.t() @ self.right.reshape(-1, self.right.shape[-1])

    def per_example(self) -> Tensor:
        """``g_n``, [N, C, r] or [N, C]."""
        if self.right is None:
            return self.left if self.left.dim() == 2 else self.left.sum(1)
        if self.left.dim() == 2:
            return self.left.unsqueeze(2) * self.right.unsqueeze(1)
        return self.left.transpose(1, 2) @ self.right

    def scaled(self, factors_N: Tensor) -> Outer:
        """Every ``g_n`` times its factor, taken on the narrower side."""
        if self.right is None or self.left.shape[-1] < self.right.shape[-1]:
            return Outer(self.left * _rows_like(factors_N, self.left), self.right)
        return Outer(self.left, self.right * _rows_like(factors_N, self.right))


def _rows_like(factors_N: Tensor, t: Tensor) -> Tensor:
    return factors_N.reshape(-1, *[1] * (t.dim() - 1))


class Credit(ABC):
    """The losses of a batch, and every example's gradient before it is added up.

    Attributes:
        loss: [N], unweighted.
        metric: [N], unweighted.
    """

    loss: Tensor
    metric: Tensor

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """``||g_n||^2`` over all adapter tensors together, [N]."""

    @abstractmethod
    def total(self, factors_N: Tensor | None = None) -> dict[str, Tensor]:
        """``sum_n factors_n g_n`` by adapter name; without factors ``sum_n g_n``."""


@dataclass(frozen=True, kw_only=True)
class Factored(Credit):
    """Gradients of linear layers: products of an error and an input.

    Attributes:
        loss, metric: [N].
        outers: adapter name -> its parts; a layer that is called twice has two.
    """

    loss: Tensor
    metric: Tensor
    outers: Mapping[str, tuple[Outer, ...]]

    def squared_norms(self) -> Tensor:  # noqa: D102
        norms = [
            sum((part.per_example() for part in parts[1:]), parts[0].per_example())
            .flatten(1)
            .square()
            .sum(1)
            for parts in self.outers.values()
        ]
        return sum(norms[1:], norms[0])

    def total(self, factors_N: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        result = {}
        for name, parts in self.outers.items():
            totals = [
                (part if factors_N is None else part.scaled(factors_N)).total() for part in parts
            ]
            result[name] = sum(totals[1:], totals[0])
        return result


@dataclass(frozen=True)
class Gradients:
    """Loss [N] and metric [N], unweighted, and ``sum_n g_n`` by adapter name."""

    loss: Tensor
    metric: Tensor
    by_name: dict[str, Tensor]
