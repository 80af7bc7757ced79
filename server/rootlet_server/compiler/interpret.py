"""Runs a traced program node by node, with the frozen base in float, int8 or int4.

One interpreter serves the export, the simulation (under ``torch.func.vmap``) and the tests (in
float64).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rootlet_server.compiler.conv_int8 import conv_geometry, static_int8_conv
from rootlet_server.compiler.int4 import int4_weight
from rootlet_server.compiler.int8 import row_int8_matmul
from rootlet_server.compiler.operators import REWRITES, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from rootlet_server.compiler.trace import Program

    Wrapper = Callable[[tuple[Any, ...], Callable[[], Any]], Any]

aten = torch.ops.aten
CONVOLUTIONS = frozenset(
    {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def evaluate_node(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], float_dtype: torch.dtype
) -> Any:
    """One operator; casts to a float become casts to ``float_dtype``, so float64 works too."""
    if node.target in (aten._to_copy.default, aten.to.dtype):
        dtype = kwargs.get("dtype", args[1] if len(args) > 1 else None)
        return cast(args[0], float_dtype if dtype in FLOATS else dtype)
    compute: Any = REWRITES.get(node.target, node.target)
    return compute(*args, **kwargs)


def base_product(
    node: fx.Node, program: Program, frozen: Mapping[str, Tensor], args: tuple[Any, ...]
) -> Any:
    """A linear, convolution or embedding with a frozen weight, in the form that ``freeze`` stored.

    Returns None where the weight is not one of the model's own tensors or is stored plain.
    """
    position = 0 if node.target is aten.embedding.default else 1
    weight = program.parameter(node.args[position]) if len(node.args) > position else None
    if weight is None:
        return None
    if node.target is aten.linear.default:
        return _linear(frozen, weight, args[0], args[2] if len(args) > 2 else None)
    if node.target in CONVOLUTIONS and f"{weight}:conv.q" in frozen:
        return _convolution(node, frozen, weight, args)
    if node.target is aten.embedding.default and f"{weight}:embedding.q" in frozen:
        q, scale = frozen[f"{weight}:embedding.q"], frozen[f"{weight}:embedding.scale"]
        return torch.nn.functional.embedding(args[1], q).to(
            scale.dtype
        ) * torch.nn.functional.embedding(args[1], scale)
    return None


def _convolution(
    node: fx.Node, frozen: Mapping[str, Tensor], weight: str, args: tuple[Any, ...]
) -> Any:
    q, scale = frozen[f"{weight}:conv.q"], frozen[f"{weight}:conv.scale"]
    geometry = conv_geometry(args, q.shape)
    if geometry is not None and f"{weight}:conv.x_scale" in frozen:
        return static_int8_conv(frozen, weight, args[0], geometry)
    convolution: Any = node.target
    return convolution(args[0], q.to(scale.dtype) * scale, *args[2:])


def _linear(
    frozen: Mapping[str, Tensor], weight: str, x: Tensor, bias: Tensor | None
) -> Tensor | None:
    scale = frozen.get(f"{weight}:linear.scale")
    if scale is None:
        if f"{weight}:linear" not in frozen:
            return None
        out = x @ frozen[f"{weight}:linear"]
    elif f"{weight}:linear.int4" in frozen:
        out = x @ int4_weight(frozen[f"{weight}:linear.int4"], scale)
    else:
        both_ways = f"{weight}:linear.both" in frozen
        q = frozen[f"{weight}:linear.{'both' if both_ways else 'q'}"]
        out = row_int8_matmul(x, q, scale, both_ways=both_ways)
    return out if bias is None else out + bias


def run(
    program: Program,
    frozen: Mapping[str, Tensor],
    x: Tensor,
    *,
    wrap: Mapping[str, Wrapper] | None = None,
    keep: Collection[str] = (),
    float_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute the program's output.

    Args:
        program: the traced model.
        frozen: its tensors as ``freeze`` stored them (or plain).
        x: [N, ...].
        wrap: node name -> function called in the node's place with its arguments and with the way
            to compute it.
        keep: node names whose values are wanted.
        float_dtype: what casts to a float in the program become.

    Returns:
        the output [N, K] and the kept values.
    """

    def compute_node(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = base_product(node, program, frozen, args)
        return evaluate_node(node, args, kwargs, float_dtype) if value is None else value

    wrap = wrap or {}
    env: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    last_use = _last_uses(program.graph)
    for node in program.graph.nodes:
        if node.name == program.x:
            env[node.name] = x
            continue
        if node.op == "placeholder":
            # A weight that only its layer reads may be stored in another form; the batch itself is
            # not there where a latent takes its place.
            env[node.name] = frozen.get(program.names.get(node.name, ""))
            continue
        if node.name in program.batch_sizes:
            env[node.name] = x.shape[0]
            continue
        if node.name in program.skipped:
            continue
        if node.op == "output":
            break
        args = fx.node.map_arg(node.args, lambda n: env[n.name])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n.name])
        compute = partial(compute_node, node, args, kwargs)
        value = wrap[node.name](args, compute) if node.name in wrap else compute()
        env[node.name] = value
        if node.name in keep:
            kept[node.name] = value
        for name in last_use.get(node, ()):
            if name != program.output:
                del env[name]
    return env[program.output], kept


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[str]]:
    """Node -> names of the values that nobody reads after it."""
    seen: set[fx.Node] = set()
    result: dict[fx.Node, list[str]] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        for used in node.all_input_nodes:
            if used not in seen:
                seen.add(used)
                result.setdefault(node, []).append(used.name)
    return result
