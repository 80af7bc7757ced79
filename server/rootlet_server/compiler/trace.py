"""A model becomes a graph of aten operators with its frozen tensors beside it.

``torch.export`` traces the model without touching its source; what the interpreter does not know
is refused here, by module path.
"""

from __future__ import annotations

import copy
import operator
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from rootlet_server.compiler.attention import separate_attention
from rootlet_server.compiler.config import LARGEST_BATCH
from rootlet_server.compiler.errors import CompileError, UnsupportedModelError
from rootlet_server.compiler.operators import SUPPORTED, reason_for

if TYPE_CHECKING:
    from collections.abc import Mapping

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Program:
    """The traced model.

    Attributes:
        graph: functional aten graph; nodes carry ``meta["val"]`` with the symbolic batch size.
        tensors: the model's parameters, buffers and constants by name; never trained.
        names: placeholder node name -> tensor name.
        x: name of the node at which the batch comes in: a placeholder, or a latent.
        output: name of the node that is the model's output [N, K].
        num_outputs: K.
        skipped: nodes that are not computed: those outside a half (``latent.py``).
        batch_sizes: nodes that are the number of examples, whatever they were read from.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    x: str
    output: str
    num_outputs: int
    skipped: frozenset[str] = frozenset()
    batch_sizes: frozenset[str] = frozenset()

    def node(self, name: str) -> fx.Node:
        """The node of that name."""
        found: fx.Node = next(n for n in self.graph.nodes if n.name == name)
        return found

    def parameter(self, arg: object) -> str | None:
        """The tensor name behind an argument, if the argument is one of the model's own tensors."""
        return self.names.get(arg.name) if isinstance(arg, fx.Node) else None


def module_path(node: fx.Node) -> str:
    """Where in the model this operator was called, such as ``encoder.layers.0.linear1``."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(value[0]) for value in stack.values() if isinstance(value, tuple)]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def trace(model: nn.Module, example: Tensor) -> Program:
    """Trace a copy of ``model``, in float32 and eval mode, on a batch of at least two examples.

    Raises:
        UnsupportedModelError: an operator, a recurrent module or an output that the compiler does
            not know.
        CompileError: torch could not trace the model, or the batch size is baked into it.
    """
    if not isinstance(model, nn.Module):
        raise CompileError(f"model is a {type(model).__name__}; pass a torch.nn.Module.")
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise UnsupportedModelError(
                path,
                f"{type(module).__name__} is recurrent",
                "Use convolutions or attention over time instead.",
            )
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    separate_attention(model)
    model.eval()
    exported = _export(model, example)
    signature = exported.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**exported.state_dict, **exported.constants}
    (x,) = (n.name for n in exported.graph.nodes if n.op == "placeholder" and n.name not in names)
    outputs = next(n for n in exported.graph.nodes if n.op == "output").args[0]
    if len(outputs) != 1:
        raise UnsupportedModelError(
            "",
            f"it returns {len(outputs)} tensors",
            "Wrap it in a module that returns only the [batch, K] output.",
        )
    graph = exported.graph
    _refuse_unknown(graph)
    shape = outputs[0].meta["val"].shape
    if len(shape) != 2 or not isinstance(shape[0], torch.SymInt):
        raise UnsupportedModelError(
            "",
            f"its output has shape {list(shape)}, not [batch, K]",
            "Pool over positions before the head.",
        )
    used = {names[n.name] for n in graph.nodes if n.name in names and n.users}
    return Program(
        graph=graph,
        tensors={name: _plain(tensors[name]) for name in tensors if name in used},
        names=names,
        x=x,
        output=outputs[0].name,
        num_outputs=int(shape[1]),
    )


def _plain(tensor: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise CompileError(f"A constant of the model is a {type(tensor).__name__}, not a tensor.")
    plain = tensor.detach().clone().contiguous()
    return plain.float() if plain.is_floating_point() else plain


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2, max=LARGEST_BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                model, (example,), dynamic_shapes=({0: batch},), strict=False
            )
            functional: torch.export.ExportedProgram = exported.run_decompositions({})
            return functional
    except UnsupportedModelError:
        raise
    except Exception as error:
        text = str(error)
        if "Constraints violated" in text or "specializ" in text.lower():
            raise CompileError(
                f"The model only works for a batch of {len(example)}: it bakes the batch size in. "
                "Use x.shape[0] instead of a number, and nothing that depends on how many examples "
                "there are. "
                f"torch says: {text.splitlines()[0]}"
            ) from error
        raise CompileError(
            f"torch.export cannot trace the model ({type(error).__name__}): "
            f"{text.splitlines()[0] if text else ''} "
            "Control flow that depends on values must leave the forward pass."
        ) from error


def _refuse_unknown(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op != "call_function" or node.target in SUPPORTED:
            continue
        if (
            getattr(node.target, "__module__", "") in ("_operator", "math")
            or node.target is operator.getitem
        ):
            continue
        reason, remedy = reason_for(node.target)
        raise UnsupportedModelError(module_path(node), reason, remedy)


def arguments(node: fx.Node, env: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with the values computed so far put in."""
    return (
        fx.node.map_arg(node.args, lambda n: env[n.name]),
        fx.node.map_arg(node.kwargs, lambda n: env[n.name]),
    )
