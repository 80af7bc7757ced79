"""The product of an error with an int8 feedback matrix, in the better of two forms.

``u M`` with ``M = q * scale`` and one scale for each row of M, that is for each entry of u:

* a matrix of fewer than ``INT8_FROM`` numbers is dequantised, which the engine does once when it
  loads the graph;
* from there on M stays in int8, the rows of ``u * scale`` are rounded to int8 too (the int8 error),
  and the product is one of integers.

Where the border lies and why: ``docs/decisions/0008-int8-error.md``.

Shape legend: N examples, K entries of the error (outputs or features), C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rootlet_server.compiler.int8 import row_int8_matmul

if TYPE_CHECKING:
    from torch import Tensor

INT8_FROM = 2**18


def stays_int8(entries: int, channels: int) -> bool:
    """Whether the product with a matrix [entries, channels] is one of integers."""
    return entries * channels >= INT8_FROM


def broadcast(signal_NK: Tensor, q_KC: Tensor, scale_K1: Tensor) -> Tensor:
    """``u (q * scale)``, [N, C]; within 1/254 of each row's largest ``u * scale`` where rounded."""
    product = int8_product if stays_int8(*q_KC.shape) else dequantised_product
    return product(signal_NK, q_KC, scale_K1)


def dequantised_product(signal_NK: Tensor, q_KC: Tensor, scale_K1: Tensor) -> Tensor:
    """``u (q * scale)`` in floating point."""
    dtype = signal_NK.dtype
    return signal_NK @ (q_KC.to(dtype) * scale_K1.to(dtype))


def int8_product(signal_NK: Tensor, q_KC: Tensor, scale_K1: Tensor) -> Tensor:
    """The same with each row of ``u * scale`` rounded to int8."""
    one = torch.ones(1, dtype=signal_NK.dtype)
    return row_int8_matmul(signal_NK * scale_K1.to(signal_NK.dtype).squeeze(1), q_KC, one)


def centred(matrix_KC: Tensor) -> Tensor:
    """M less the mean of its rows.

    An error that sums to zero, as that of a softmax does, has the same product with both. Rounded
    to int8 it no longer does: what the rows have in common would come through, and it may be most
    of M.
    """
    return matrix_KC - matrix_KC.mean(0, keepdim=True)
