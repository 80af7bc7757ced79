"""Averages of the weights along a run: exponential, or the mean of its last quarter.

    ema: m <- d m + (1 - d) w  after every step        swa: the mean of w over the last quarter

The arithmetic is torch's (``torch.optim.swa_utils``). Running statistics of batch normalisation
do not average: they are recomputed for the averaged weights (``torch.optim.swa_utils.update_bn``).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rootlet_server.training.config import FullTrainingConfig

SWA_SHARE = 0.75  # of the steps have gone by when the mean begins


class Averages:
    """The running average of a model's parameters.

    Attributes:
        values: by parameter, as they are sharded.
        count: how many weights are in it.
    """

    def __init__(self, model: nn.Module, config: FullTrainingConfig, steps: int) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._fold = (
            get_ema_multi_avg_fn(config.ema_decay)
            if config.averaging == "ema"
            else get_swa_multi_avg_fn()
        )
        self._first = 0 if config.averaging == "ema" else int(SWA_SHARE * steps)
        self.values = [p.detach().clone() for p in self._parameters]
        self.count = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step."""
        if step < self._first:
            return
        if self.count == 0:
            for value, p in zip(self.values, self._parameters, strict=True):
                value.copy_(p)
        else:
            self._fold(self.values, [p.detach() for p in self._parameters], self.count)
        self.count += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the averages while it lasts; nothing where there are none yet."""
        if not self.count:
            yield
            return
        kept = [p.detach().clone() for p in self._parameters]
        self.assign()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self._parameters, kept, strict=True):
                    p.copy_(value)

    @torch.no_grad()
    def assign(self) -> None:
        """Put the averages in the model's place."""
        if self.count:
            for p, value in zip(self._parameters, self.values, strict=True):
                p.copy_(value)


def recompute_statistics(model: nn.Module, batches: Iterable[Tensor], device: torch.device) -> None:
    """Batch normalisation's running statistics over batches; models without it are left alone."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        update_bn(batches, model, device)
