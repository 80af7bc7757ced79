"""How a feedback matrix is stored, and how a signal is multiplied by it.

| form | stored | M |
|---|---|---|
| int8 | int8 [K, C], a scale for each row | q * scale |
| sign | the same, of -1, 0 and 1 | sign(M) times the row's mean magnitude |
| low_rank | left [K, r] and int8 right [r, C] with a scale for each row | left @ right |

Shape legend: N examples, K outputs (or features), C channels, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.broadcast import broadcast
from rootlet_server.compiler.int8 import quantize_weight

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from rootlet_server.compiler.config import FeedbackForm

    Tensors = Mapping[str, Tensor]


def form_keys(point: str) -> tuple[str, str, str]:
    """Where the frozen tensors hold the int8 matrix of a point, its scale and its left factor."""
    return f"{point}:feedback.q", f"{point}:feedback.scale", f"{point}:feedback.left"


def stored(
    point: str, matrix: Tensor, form: FeedbackForm = "int8", rank: int = 8
) -> dict[str, Tensor]:
    """The tensors of M [K, C] in a form, by the keys of ``point``."""
    q_key, scale_key, left_key = form_keys(point)
    if form == "sign":
        scale = matrix.abs().mean(1, keepdim=True)
        return {q_key: matrix.sign().to(torch.int8), scale_key: scale}
    result = {}
    if form == "low_rank":
        left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
        result[left_key] = (left * singular)[:, :rank].contiguous()
        matrix = right[:rank]
    q, scale = quantize_weight(matrix, channel_dim=0)
    return {q_key: q, scale_key: scale, **result}


def project(point: str, frozen: Tensors, signal_NK: Tensor) -> Tensor:
    """``u M``, [N, C], by ``broadcast``; a low-rank M takes the way through its r numbers."""
    q_key, scale_key, left_key = form_keys(point)
    if left_key in frozen:
        signal_NK = signal_NK @ frozen[left_key].to(signal_NK.dtype)
    return broadcast(signal_NK, frozen[q_key], frozen[scale_key])


def feedback_matrix(point: str, frozen: Tensors, dtype: torch.dtype) -> Tensor:
    """M [K, C] in floating point."""
    q_key, scale_key, left_key = form_keys(point)
    right = frozen[q_key].to(dtype) * frozen[scale_key].to(dtype)
    return frozen[left_key].to(dtype) @ right if left_key in frozen else right
