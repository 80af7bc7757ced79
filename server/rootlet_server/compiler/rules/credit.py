"""What a rule is given and what it returns: a batch, and every example's gradient in factors.

Shape legend: N examples, P positions, C adapted channels, r rank (or input features, for A).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# A squared length below this counts as this: float32 loses what is much smaller.
TINY = 1e-30
# Squared norms of Gram matrices are rounded to about 1e-6 of the bound of Cauchy and Schwarz. With
# P positions in random directions they are 1/P of it.
CANCELLED = 1e-4


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

    def total(self, factors_N: Tensor | None = None) -> Tensor:
        """``sum_n factors_n g_n``, [C, r] or [C]; see :meth:`Credit.total` for the factors."""
        part = self if factors_N is None else self._scaled(factors_N)
        left = part.left.reshape(-1, part.left.shape[-1])
        if part.right is None:
            return left.sum(0)
        return left.t() @ part.right.reshape(-1, part.right.shape[-1])

    def per_example(self) -> Tensor:
        """``g_n``, [N, C, r] or [N, C]."""
        if self.right is None:
            return self.left if self.left.dim() == 2 else self.left.sum(1)
        if self.left.dim() == 2:
            return self.left.unsqueeze(2) * self.right.unsqueeze(1)
        return self.left.transpose(1, 2) @ self.right

    def squared_norms(self) -> Tensor:
        """``||g_n||^2``, [N], without the products: ``sum_{p,q} (l_p . l_q)(r_p . r_q)``.

        That is ``|l|^2 |r|^2`` where there is one position. Rounding must not make a norm smaller
        than it is: a squared length counts as ``TINY`` at least, and where positions cancel, the
        result as ``CANCELLED`` of the bound of Cauchy and Schwarz at least.
        """
        if self.right is None:
            return _squares(self.per_example())
        if self.left.dim() == 2:
            return _squares(self.left).clamp_min(TINY) * _squares(self.right).clamp_min(TINY)
        gram = (self.left @ self.left.transpose(1, 2)) * (self.right @ self.right.transpose(1, 2))
        bound = _squares(self.left).clamp_min(TINY) * _squares(self.right).clamp_min(TINY)
        return gram.sum((1, 2)).maximum(CANCELLED * bound)

    def compact(self) -> Outer | Dense:
        """The products, where they are needed anyway or no larger than what they are made of."""
        if self.left.dim() == 2:
            return self
        p, c = self.left.shape[1:]
        r = 0 if self.right is None else self.right.shape[2]
        return Dense(self.per_example()) if c * r <= p * (c + r) else self

    def _scaled(self, factors_N: Tensor) -> Outer:
        """Every ``g_n`` times its factor, taken on the narrower side."""
        if self.right is None:
            return Outer(_scale_rows(self.left, factors_N), None)
        if self.left.shape[-1] < self.right.shape[-1]:
            return Outer(_scale_rows(self.left, factors_N), _keep_rows(self.right, factors_N))
        return Outer(_keep_rows(self.left, factors_N), _scale_rows(self.right, factors_N))


@dataclass(frozen=True)
class Dense:
    """Per-example gradients themselves, [N, ...]."""

    values: Tensor

    def total(self, factors_N: Tensor | None = None) -> Tensor:
        """``sum_n factors_n g_n``; see :meth:`Credit.total` for the factors."""
        if factors_N is None:
            return self.values.sum(0)
        kept = _keep_rows(self.values, factors_N)
        return (factors_N @ kept.flatten(1)).reshape(self.values.shape[1:])

    def squared_norms(self) -> Tensor:
        """``||g_n||^2``, [N]."""
        return _squares(self.values)


def _squares(t: Tensor) -> Tensor:
    return t.square().flatten(1).sum(1)


def _rows_like(factors_N: Tensor, t: Tensor) -> Tensor:
    return factors_N.reshape(-1, *[1] * (t.dim() - 1))


def _keep_rows(t: Tensor, factors_N: Tensor) -> Tensor:
    """``t`` with zeros where the factor is 0; a product would leave NaN there."""
    return torch.where(_rows_like(factors_N, t) == 0, 0.0, t)


def _scale_rows(t: Tensor, factors_N: Tensor) -> Tensor:
    return _keep_rows(t, factors_N) * _rows_like(factors_N, t)


def _merged(parts: tuple[Outer, ...]) -> Outer:
    """One sum over all positions of all parts: a norm is of the sum, not the sum of norms."""
    if len(parts) == 1:
        return parts[0]
    left = torch.cat([_with_positions(part.left) for part in parts], 1)
    rights = [part.right for part in parts if part.right is not None]
    if len(rights) < len(parts):  # a bias: its parts are all biases
        return Outer(left, None)
    return Outer(left, torch.cat([_with_positions(right) for right in rights], 1))


def _with_positions(t: Tensor) -> Tensor:
    return t.unsqueeze(1) if t.dim() == 2 else t


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
        """``sum_n factors_n g_n`` by adapter name; without factors ``sum_n g_n``.

        An example whose factor is 0 adds nothing, also where its values are not finite.
        """

    def compact(self) -> Credit:
        """The same, ready for both norms and totals without computing anything twice."""
        return self


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
        return self.compact().squared_norms()

    def total(self, factors_N: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        result = {}
        for name, parts in self.outers.items():
            totals = [part.total(factors_N) for part in parts]
            result[name] = sum(totals[1:], totals[0])
        return result

    def compact(self) -> Compact:  # noqa: D102
        gradients = {name: _merged(parts).compact() for name, parts in self.outers.items()}
        return Compact(loss=self.loss, metric=self.metric, gradients=gradients)


@dataclass(frozen=True, kw_only=True)
class Compact(Credit):
    """Each adapter tensor's gradients once, in the cheaper of the two forms.

    One position: a product of two lengths gives the norm. More: the products [N, C, r], which then
    serve for the sum as well, unless they are larger than their factors; then the Gram matrices of
    the positions.

    Attributes:
        loss, metric: [N].
        gradients: by adapter name.
    """

    loss: Tensor
    metric: Tensor
    gradients: Mapping[str, Outer | Dense]

    def squared_norms(self) -> Tensor:  # noqa: D102
        norms = [gradient.squared_norms() for gradient in self.gradients.values()]
        return sum(norms[1:], norms[0])

    def total(self, factors_N: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        return {name: gradient.total(factors_N) for name, gradient in self.gradients.items()}


@dataclass(frozen=True)
class Gradients:
    """Loss [N] and metric [N], unweighted, and ``sum_n g_n`` by adapter name."""

    loss: Tensor
    metric: Tensor
    by_name: dict[str, Tensor]
