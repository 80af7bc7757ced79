"""The models that the benchmarks train, and the peer: the same adapters trained by eager torch.

Nothing of rootlet is imported here, so that a process which measures the peer holds torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLASSES = 10


class Attention(nn.Module):
    """Four heads, one projection each for queries, keys and values, and torch's fused product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (4, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block; its feed-forward layer is four times as wide, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Blocks on features [N, T, width], mean pooling, a linear head."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp(*widths: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


@dataclass(frozen=True)
class Case:
    """A model by name, with the shape of one example."""

    make: Callable[[], nn.Module]
    example: tuple[int, ...]

    def model(self) -> nn.Module:
        """The same random weights at every call."""
        torch.manual_seed(0)
        return self.make()

    def batch(self, size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Random features and labels: they decide nothing about speed or memory."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, *self.example, generator=generator)
        return x, torch.randint(CLASSES, (size,), generator=generator)


CASES = {
    "tiny": Case(partial(mlp, 16, 16), (16,)),
    "mlp-1024": Case(partial(mlp, 512, 1024, 1024, 1024), (512,)),
    "block-d128-t32": Case(partial(Transformer, 1, 128), (32, 128)),
    "block-d384-t64": Case(partial(Transformer, 1, 384), (64, 384)),
    "4-blocks-d384-t64": Case(partial(Transformer, 4, 384), (64, 384)),
}


class LowRank(nn.Module):
    """``W h + b + B (s A) h`` with W, b and A frozen; the scale is folded into A."""

    def __init__(self, base: nn.Linear, scaled_a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("a", scaled_a.contiguous())
        self.b = nn.Parameter(b)

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h) + F.linear(F.linear(h, self.a), self.b)


class EagerPeer:
    """LoRA by torch in eager mode: backpropagation, plain parameters, foreach SGD.

    Args:
        model: the base; it is changed in place and frozen, except its head.
        scaled_a: module path -> s A [r, in], for every layer that carries an adapter.
        head: path of the head.
        learning_rate: step size.
    """

    def __init__(
        self,
        model: nn.Module,
        scaled_a: Mapping[str, Tensor],
        head: str,
        learning_rate: float,
    ) -> None:
        self.model = model.requires_grad_(False)
        for path, a in scaled_a.items():
            parent, _, name = path.rpartition(".")
            base = self.model.get_submodule(path)
            b = torch.zeros(base.out_features, len(a))
            setattr(self.model.get_submodule(parent), name, LowRank(base, a, b))
        self.model.get_submodule(head).requires_grad_(True)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learned, lr=learning_rate, foreach=True)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step; the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()
