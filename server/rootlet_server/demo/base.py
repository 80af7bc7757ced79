"""The base that the demo adapts: an MLP trained on the server by backpropagation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootlet_server.compiler import CompileConfig, TrainingConfig
from rootlet_server.demo.data import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.demo.data import Share

WIDTH = 128
EPOCHS = 40
BATCH_SIZE = 64
LEARNING_RATE = 2e-3

COMPILE = CompileConfig(
    training=TrainingConfig(learning_rate=0.02, batch_size=16, epochs=3),
    labels=tuple("0123456789"),
    licence="Apache-2.0 (base); CC BY 4.0 (data)",
    data_origin=ORIGIN,
)
"""How the demo's bundle is compiled."""


def _tensors(share: Share) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(share.x), torch.from_numpy(share.y)


def train_base(source: Share, *, seed: int, progress: Callable[[int, int], None]) -> nn.Module:
    """Train 64-128-128-10 with Adam on the upright digits; ``progress`` gets (epoch, epochs)."""
    torch.set_num_threads(1)  # a net this small only loses time to a second thread
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(source.x.shape[1], WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=1e-4)
    x, y = _tensors(source)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        progress(epoch + 1, EPOCHS)
    return model.eval()


def accuracy(model: nn.Module, share: Share) -> float:
    """Share of right answers."""
    x, y = _tensors(share)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())
