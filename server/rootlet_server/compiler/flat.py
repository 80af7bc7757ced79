"""A pure function as a flat list of torch's own operators, for loops that call it often.

The step is written for clarity: an interpreter over the model's graph, ``vmap``, autograd
functions, operators of our own. Each call pays for all of that in Python. Traced once at fixed
shapes it is a list of aten operators with the same numbers, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rootlet_server.compiler.conv_int8 import convolution_in_floats
from rootlet_server.compiler.int8 import product_in_floats

if TYPE_CHECKING:
    from collections.abc import Callable


def flat(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """``function`` at the shapes and dtypes of ``examples``.

    Args:
        function: pure; what it branches on must be a shape or a Python value.
        examples: arguments of the kind that it will be called with; tensors, or containers of them.

    Returns:
        A function of the same arguments. Tensors of other shapes give an error or, where an
        operator spreads them, nonsense: call it with these shapes only.
    """
    in_floats: dict[Any, Callable[..., Any]] = {
        torch.ops.rootlet.row_int8_matmul.default: product_in_floats,
        torch.ops.rootlet.static_int8_conv.default: convolution_in_floats,
    }
    traced: Callable[..., Any] = make_fx(function, decomposition_table=in_floats)(*examples)
    return traced
