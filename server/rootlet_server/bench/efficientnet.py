"""EfficientNet-lite0 in plain modules, cut into a frozen prefix and a tail that compiles."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STEM, FEATURES = 32, 1280
EPSILON = 1e-3
# (repeats, kernel, stride, expansion, inputs, outputs), as in the TPU repository's lite0
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SamePad(nn.Module):
    """A convolution with the padding that TensorFlow calls SAME, for inputs of even size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.pad = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C', H / stride, W / stride]."""
        out: Tensor = self.conv(nn.functional.pad(x, self.pad * 2))
        return out


class Block(nn.Module):
    """Inverted bottleneck: 1 x 1 expansion, depthwise convolution, 1 x 1 projection."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = (
            nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide, EPSILON))
            if expansion > 1
            else None
        )
        self.depthwise = SamePad(wide, wide, kernel, stride, wide)
        self.norm = nn.BatchNorm2d(wide, EPSILON)
        self.project = nn.Conv2d(wide, outputs, 1, bias=False)
        self.projected = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C', H', W']."""
        h = x if self.expand is None else nn.functional.relu6(self.expand(x))
        h = nn.functional.relu6(self.norm(self.depthwise(h)))
        h = self.projected(self.project(h))
        out: Tensor = x + h if self.residual else h
        return out

    def load(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Take the weights of one block by their published names."""
        if self.expand is not None:
            _load(self.expand[0], tensors, f"{prefix}_expand_conv")
            _load(self.expand[1], tensors, f"{prefix}_bn0")
        _load(self.depthwise.conv, tensors, f"{prefix}_depthwise_conv")
        _load(self.norm, tensors, f"{prefix}_bn1")
        _load(self.project, tensors, f"{prefix}_project_conv")
        _load(self.projected, tensors, f"{prefix}_bn2")


def _load(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    module.load_state_dict({key: tensors[f"{name}.{key}"] for key in module.state_dict()})


def _blocks(tensors: Mapping[str, Tensor]) -> list[Block]:
    blocks = []
    for repeats, kernel, stride, expansion, inputs, outputs in STAGES:
        for n, (a, b) in enumerate(pairwise([inputs, *[outputs] * repeats])):
            blocks.append(Block(kernel, 1 if n else stride, expansion, a, b))
    for n, block in enumerate(blocks):
        block.load(tensors, f"_blocks.{n}.")
    return blocks


class Prefix(nn.Module):
    """The stem and the first blocks."""

    def __init__(self, tensors: Mapping[str, Tensor], blocks: int) -> None:
        super().__init__()
        self.stem = SamePad(3, STEM, 3, 2, 1)
        _load(self.stem.conv, tensors, "_conv_stem")
        self.norm = nn.BatchNorm2d(STEM, EPSILON)
        _load(self.norm, tensors, "_bn0")
        self.blocks = nn.Sequential(*_blocks(tensors)[:blocks])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H / 32 or H / 16, ...] of pictures [N, 3, H, W] in -1..1."""
        out: Tensor = self.blocks(nn.functional.relu6(self.norm(self.stem(x))))
        return out


class Tail(nn.Module):
    """The last blocks, the last 1 x 1 convolution, mean pooling and a head."""

    def __init__(self, tensors: Mapping[str, Tensor], first: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*_blocks(tensors)[first:])
        self.last = nn.Conv2d(STAGES[-1][-1], FEATURES, 1, bias=False)
        _load(self.last, tensors, "_conv_head")
        self.norm = nn.BatchNorm2d(FEATURES, EPSILON)
        _load(self.norm, tensors, "_bn1")
        self.head = nn.Linear(FEATURES, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of what ``Prefix`` returns."""
        x = nn.functional.relu6(self.norm(self.last(self.blocks(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def load(folder: Path) -> dict[str, Tensor]:
    """The published ImageNet weights, by their names."""
    tensors: dict[str, Tensor] = torch.load(
        folder / "models" / "efficientnet-lite0-57934424.pth", weights_only=True
    )
    return tensors
