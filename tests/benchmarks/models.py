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


def cnn(width: int) -> nn.Module:
    """Two stages of 3x3 and 1x1 convolutions, pooled."""

    def stage(channels: int, out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        ]  # fmt: skip

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES)]
    return nn.Sequential(
        *stage(3, width), *stage(width, width), nn.MaxPool2d(2),
        *stage(width, 2 * width), *stage(2 * width, 2 * width), *pool,
    )  # fmt: skip


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
    "cnn-32": Case(partial(cnn, 32), (3, 32, 32)),
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


class LowRankConv(nn.Module):
    """The same at a convolution: A is one with the layer's window, B one of 1 x 1."""

    def __init__(self, base: nn.Conv2d, scaled_a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        filters = scaled_a.reshape(len(scaled_a), base.in_channels, *base.kernel_size)
        self.register_buffer("a", filters.contiguous())
        self.b = nn.Parameter(b)

    def forward(self, h: Tensor) -> Tensor:
        geometry = (self.base.stride, self.base.padding, self.base.dilation)
        z = F.conv2d(h, self.a, None, *geometry)
        return self.base(h) + F.conv2d(z, self.b[:, :, None, None])


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
        self.model = model.requires_grad_(False).eval()
        for path, a in scaled_a.items():
            parent, _, name = path.rpartition(".")
            base = self.model.get_submodule(path)
            b = torch.zeros(len(base.weight), len(a))
            made = LowRankConv if isinstance(base, nn.Conv2d) else LowRank
            setattr(self.model.get_submodule(parent), name, made(base, a, b))
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
