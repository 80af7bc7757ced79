"""Latents: the values of the longest frozen prefix of a model, where no adapter sits in it.

No training changes what lies before the first adapter, so its output for an example is computed
once and trained on again and again (latent replay, Pellegrini et al. 2020). The model is cut in two
at one node c through which every path from the batch to the output runs:

    latent = prefix(x)          output = tail(latent)

Both halves are the same program with other ends. A size of the batch that the tail reads from the
prefix is read from the latent instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from rootlet_server.compiler.sites import Head, Site
    from rootlet_server.compiler.trace import Program

SYM_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True, kw_only=True)
class Halves:
    """The two halves of a program: ``tail(prefix(x))`` is the program's output."""

    prefix: Program
    tail: Program


def cut(program: Program, sites: Iterable[Site], head: Head) -> Halves | None:
    """Cut a program at the last place before all of its sites and its head.

    Returns:
        None where an adapter reads the batch directly, where no frozen weight lies before the
        first one, or where the paths to the adapters share no node.
    """
    learning = {head.node, *(site.node for site in sites)}
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in reversed(nodes):
        if not _is_latent(program, node):
            continue
        needed, sizes = _needed(program, node)
        if needed is None or not learning <= needed:
            continue
        before = _ancestors(node)
        if not any(program.parameter(used) for used in before):
            return None
        names = {n.name for n in nodes}
        tail = replace(
            program,
            x=node.name,
            skipped=frozenset(names - needed - sizes - {node.name}),
            batch_sizes=frozenset(sizes),
        )
        inside = {n.name for n in before} | {node.name}
        prefix = replace(program, output=node.name, skipped=frozenset(names - inside))
        return Halves(prefix=prefix, tail=tail)
    return None


def _batch(program: Program) -> Any:
    return program.node(program.x).meta["val"].shape[0].node.expr


def _is_latent(program: Program, node: fx.Node) -> bool:
    """Whether a node's value is one float tensor for each example, [N, ...]."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or value.dim() < 2:
        return False
    sizes: list[Any] = list(value.shape)  # a SymInt is no int to a type checker
    first, *others = sizes
    return (
        isinstance(first, torch.SymInt)
        and first.node.expr == _batch(program)
        and not any(isinstance(size, torch.SymInt) for size in others)
    )


def _needed(program: Program, start: fx.Node) -> tuple[set[str] | None, set[str]]:
    """What must be computed from ``start`` on, and the batch sizes read from before it.

    The first is None where the batch is reached by another way.
    """
    needed: set[str] = set()
    sizes: set[str] = set()
    stack = [program.node(program.output)]
    while stack:
        node = stack.pop()
        if node is start or node.name in needed or node.name in sizes:
            continue
        if node.op == "placeholder":
            if node.name == program.x:
                return None, set()
            continue
        if _reads_batch_size(program, node):
            sizes.add(node.name)
            continue
        needed.add(node.name)
        stack.extend(node.all_input_nodes)
    return needed, sizes


def _reads_batch_size(program: Program, node: fx.Node) -> bool:
    value = node.meta.get("val")
    return (
        node.target is SYM_SIZE
        and isinstance(value, torch.SymInt)
        and bool(value.node.expr == _batch(program))
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(node.all_input_nodes)
    while stack:
        used = stack.pop()
        if used not in found:
            found.add(used)
            stack.extend(used.all_input_nodes)
    return found
