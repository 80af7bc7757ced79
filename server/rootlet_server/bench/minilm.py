"""all-MiniLM-L6-v2 (a BERT of six layers) in plain modules, so that its last layers compile."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WIDTH, HEADS, FEED_FORWARD, LAYERS = 384, 12, 1536, 6
EPSILON = 1e-12
MASKED = -1e9


class Layer(nn.Module):
    """One encoder layer with its norms after the residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, FEED_FORWARD), nn.Linear(FEED_FORWARD, WIDTH)
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=EPSILON) for _ in range(2))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        """[N, T, D] from hidden states of that shape and an additive mask [N, 1, 1, T]."""
        q, k, v = (
            part(h).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + bias
        mixed = (scores.softmax(3) @ v).transpose(1, 2).flatten(2)
        h = self.norm1(h + self.output(mixed))
        out: Tensor = self.norm2(h + self.down(nn.functional.gelu(self.up(h))))
        return out

    def load(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Take the weights of one layer by BERT's names."""
        names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "output": "attention.output.dense",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }
        kinds = ("weight", "bias")
        self.load_state_dict(
            {f"{to}.{kind}": tensors[f"{prefix}{at}.{kind}"] for to, at in names.items()
             for kind in kinds}
        )  # fmt: skip


def _layers(tensors: Mapping[str, Tensor], first: int, end: int) -> list[Layer]:
    layers = [Layer() for _ in range(first, end)]
    for n, layer in enumerate(layers, first):
        layer.load(tensors, f"encoder.layer.{n}.")
    return layers


class Prefix(nn.Module):
    """Embeddings and the first layers: what stays frozen and is computed once."""

    def __init__(self, tensors: Mapping[str, Tensor], layers: int) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            tensors[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.norm.load_state_dict(
            {kind: tensors[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        )
        self.layers = nn.ModuleList(_layers(tensors, 0, layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[N, T, D + 1]: the hidden states, and the mask as a last channel."""
        h = self.norm(self.words[ids] + self.places[: ids.shape[1]] + self.kinds[0])
        bias = ((1 - mask) * MASKED)[:, None, None, :]
        for layer in self.layers:
            h = layer(h, bias)
        return torch.cat([h, mask.unsqueeze(2)], 2)


class Tail(nn.Module):
    """The last layers, the mean over tokens that are there, and a head."""

    def __init__(self, tensors: Mapping[str, Tensor], first: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layers(tensors, first, LAYERS))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of what ``Prefix`` returns."""
        h, mask = x[..., :WIDTH], x[..., WIDTH]
        bias = ((1 - mask) * MASKED).unsqueeze(1).unsqueeze(1)
        for layer in self.layers:
            h = layer(h, bias)
        share = mask / mask.sum(1, keepdim=True)
        out: Tensor = self.head((h * share.unsqueeze(2)).sum(1))
        return out


def load(folder: Path) -> dict[str, Tensor]:
    """The published weights, by BERT's names."""
    return load_file(folder / "model.safetensors")
