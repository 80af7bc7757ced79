"""Attention with separate projections, put in the place of torch's packed module before tracing.

``nn.MultiheadAttention`` packs queries, keys and values into one weight and folds time into the
batch before its output projection; neither an adapter nor a feedback point can be attached there.
This module computes the same function, batch first, from three Linear layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rootlet_server.compiler.errors import UnsupportedModelError


def _projection(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


class SeparateAttention(nn.Module):
    """``softmax(Q K^T / sqrt(d) + mask) V`` from ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``.

    The attributes without use here (``in_proj_bias`` and others) are read by torch's own encoder
    layer to decide on a fused path, which these values switch off.
    """

    in_proj_bias = None
    in_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention, path: str) -> None:
        super().__init__()
        if source.bias_k is not None or source.add_zero_attn:
            raise UnsupportedModelError(
                path,
                "MultiheadAttention with bias_k or add_zero_attn",
                "Build it without these options.",
            )
        self.embed_dim, self.num_heads = source.embed_dim, source.num_heads
        self.head_dim, self.batch_first = source.head_dim, source.batch_first
        if source._qkv_same_embed_dim:
            weights = source.in_proj_weight.chunk(3)
        else:
            weights = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        biases = (None,) * 3 if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _projection(w, b) for w, b in zip(weights, biases, strict=True)
        )
        self.out_proj = _projection(source.out_proj.weight, source.out_proj.bias)

    def forward(  # noqa: PLR0917 (torch's own signature)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: inputs [N, T, E], or [T, N, E] unless batch_first."""
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            self._heads(self.q_proj(query)),
            self._heads(self.k_proj(key)),
            self._heads(self.v_proj(value)),
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        if attn_mask is not None:
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.reshape(-1, self.num_heads, *attn_mask.shape[1:])
            scores = scores + _as_bias(attn_mask, scores)
        if key_padding_mask is not None:
            scores = scores + _as_bias(key_padding_mask[:, None, None, :], scores)
        weights = scores.softmax(-1)
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(1) if average_attn_weights else weights

    def _heads(self, t: Tensor) -> Tensor:
        n, length, _ = t.shape
        return t.reshape(n, length, self.num_heads, self.head_dim).transpose(1, 2)


def _as_bias(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -1e9)


def separate_attention(model: nn.Module) -> None:
    """Replace every ``nn.MultiheadAttention`` below ``model``; shared ones stay shared."""
    replaced: dict[nn.Module, SeparateAttention] = {}
    for path, module in list(model.named_modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.MultiheadAttention):
                child_path = f"{path}.{name}" if path else name
                if child not in replaced:
                    replaced[child] = SeparateAttention(child, child_path)
                setattr(module, name, replaced[child])
