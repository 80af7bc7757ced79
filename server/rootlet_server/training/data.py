"""Examples for full training: arrays in memory, or any map-style Dataset.

The order is a function of (seed, epoch) alone, so a run that was killed goes on with the batches
that it would have seen, whatever it had read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rootlet_server.training.errors import BaseDataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

LEAST_EXAMPLES = 2


class Source(Protocol):
    """Where examples come from."""

    def __len__(self) -> int:
        """How many there are."""

    def batches(self, rows: Sequence[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of each set of rows, in order."""


@dataclass(frozen=True)
class Arrays:
    """Examples x [n, ...] and their labels or targets y [n, ...] as tensors."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, x: Tensor | npt.ArrayLike, y: Tensor | npt.ArrayLike) -> Arrays:
        """From anything that is an array.

        Raises:
            BaseDataError: no examples, or not one label for each.
        """
        tensors = [v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for v in (x, y)]
        tensors = [v.float() if v.dtype == torch.float64 else v for v in tensors]
        if len(tensors[0]) != len(tensors[1]) or len(tensors[0]) < LEAST_EXAMPLES:
            raise BaseDataError(
                f"x has {len(tensors[0])} examples and y {len(tensors[1])}: give one label for "
                f"each, and at least {LEAST_EXAMPLES}."
            )
        return cls(*tensors)

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, rows: Sequence[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of each set of rows; memory needs no workers."""
        for each in rows:
            yield self.x[each], self.y[each]


@dataclass(frozen=True)
class FromDataset:
    """A map-style ``torch.utils.data.Dataset`` of (x, y), read by worker processes."""

    dataset: Dataset[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, rows: Sequence[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of each set of rows."""
        chosen = [each.tolist() for each in rows]
        loader = DataLoader(self.dataset, batch_sampler=chosen, num_workers=workers)
        yield from loader


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a base is trained on, and what it is measured on.

    Attributes:
        train: the examples to learn from.
        held_out: examples for evaluation only; None evaluates nothing.
    """

    train: Source
    held_out: Source | None = None


def epoch_rows(examples: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The rows of every batch of an epoch: a permutation by (seed, epoch), the last one ragged."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return list(torch.randperm(examples, generator=generator).split(batch_size))


def in_order(examples: int, batch_size: int) -> list[Tensor]:
    """All rows once, in order."""
    return list(torch.arange(examples).split(batch_size))


def check_batch(task: str, x: Tensor, y: Tensor, outputs: int | None = None) -> None:
    """The labels must fit the task.

    Raises:
        BaseDataError: they do not.
    """
    if x.is_floating_point() and not x.isfinite().all():
        raise BaseDataError("x holds NaN or infinity; remove those examples.")
    if task == "classification":
        if y.dtype != torch.int64 or y.dim() != 1:
            raise BaseDataError(
                f"y has shape {list(y.shape)} and dtype {str(y.dtype).removeprefix('torch.')}; "
                "classification needs whole class numbers [n] in int64."
            )
        if outputs is not None and not (int(y.min()) >= 0 and int(y.max()) < outputs):
            raise BaseDataError(
                f"y holds classes {int(y.min())}..{int(y.max())}; the model has {outputs} outputs, "
                f"for classes 0..{outputs - 1}."
            )
    elif not y.is_floating_point() or y.dim() != 2:
        raise BaseDataError(
            f"y has shape {list(y.shape)} and dtype {str(y.dtype).removeprefix('torch.')}; "
            "regression needs float targets [n, K]."
        )
