"""From exported programs to one LiteRT model of builtin operators, by litert-torch.

LiteRT's shapes are static: each program is traced once more for each size of batch, and the model
has a signature for each role and size. The int8 product, which has no builtin operator with an
int32 result, is written as what it is: the row's step, a rounding, and a float32 product of whole
numbers, exact below 2^24.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._library.custom_ops import OPDEFS

from rootlet_runtime.engines.litert import LitertModel
from rootlet_runtime.errors import MissingExtraError, OperatorError
from rootlet_runtime.tflite_check import check_model, signature_key
from rootlet_server.compiler.capture import example_inputs
from rootlet_server.compiler.errors import ExportError
from rootlet_server.compiler.litert_pack import pack
from rootlet_server.compiler.verify import (
    BATCHES,
    TOLERANCE,
    disagreement,
    verify_sessions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rootlet_runtime.manifest import Manifest
    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.capture import Captured, GraphName
    from rootlet_server.compiler.verify import Sessions

aten = torch.ops.aten
_REMEDY = "Leave litert_batches out: the ONNX graphs do not need it."


class _Flat(nn.Module):
    """A captured program that takes its inputs one by one, as a signature does."""

    def __init__(self, program: torch.export.ExportedProgram, batch_inputs: int) -> None:
        super().__init__()
        self.program = _transposed_before_spread(program.module(check_guards=False))
        self.batch_inputs = batch_inputs
        self.training = False

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.program(
            list(args[: self.batch_inputs]), list(args[self.batch_inputs :])
        )
        return found


def require_converter() -> Any:
    """The converter's module.

    Raises:
        MissingExtraError: litert-torch is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("litert_torch")
    except ImportError as error:
        raise MissingExtraError(
            f"litert_batches needs litert-torch, which is not installed ({error}); run: "
            "pip install 'rootlet[server,litert-export]' (about 2 GB), or leave litert_batches out"
        ) from error


def to_litert(
    built: Built, captured: Mapping[GraphName, Captured], batches: Sequence[int]
) -> bytes:
    """The model with a signature for each role and size of batch.

    Raises:
        ExportError: the converter failed.
        MissingExtraError: litert-torch is not installed.
    """
    converter = require_converter().Converter()
    names = {}
    try:
        with _quietly():
            for role, graph in captured.items():
                program = graph.program.run_decompositions(_own_operators())
                for batch in batches:
                    key = signature_key(role, batch)
                    module = _Flat(program, len(graph.dynamic_shapes[0]))
                    converter.add_signature(key, module, _sample(built, graph, batch))
                    names[key] = (graph.inputs, graph.outputs)
            return pack(bytes(converter.convert().model_content()), names)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ExportError(
            f"litert-torch could not convert the graphs ({type(error).__name__}): {first} {_REMEDY}"
        ) from error


class _Session:
    """One role of an opened model, called as an ONNX Runtime session is."""

    def __init__(self, model: LitertModel, role: str) -> None:
        self._model = model
        self._role = role

    def run(self, outputs: list[str], values: dict[str, Any]) -> list[Any]:
        found = self._model.run(self._role, values)
        return [found[name] for name in outputs]


def verify_litert(
    built: Built, captured: Mapping[GraphName, Captured], model: bytes, manifest: Manifest
) -> float:
    """Checks the model as a device would, and runs it against the step.

    Returns:
        The worst disagreement, as ``verify_export`` has it.

    Raises:
        ExportError: it uses an operator that devices refuse, or it is not the step.
    """
    if manifest.litert is None:
        raise ExportError("The manifest declares no LiteRT model.")
    try:
        check_model(memoryview(model), manifest)
        opened = LitertModel(model, manifest.graphs, manifest.litert.batches, num_threads=1)
    except (OperatorError, RuntimeError, ValueError) as error:
        raise ExportError(f"Devices would refuse the LiteRT model: {error}. {_REMEDY}") from error
    sessions = {role: (_Session(opened, role), graph) for role, graph in captured.items()}
    largest = manifest.litert.batches[-1]
    worst = verify_sessions(built, sessions, [min(size, largest) for size in BATCHES])
    with torch.no_grad():
        one = replace(built, example=built.example[:largest])
        return max(worst, _check_update(one, sessions))


def _transposed_before_spread(module: nn.Module) -> nn.Module:
    """``transpose(expand(matrix))`` as ``expand(transpose(matrix))``.

    litert-torch 0.10 folds the former, where the matrix is a constant, into a constant that is
    reshaped in the place of transposed.
    """
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    for node in graph.nodes:
        if node.target is not aten.transpose.int:
            continue
        spread = node.args[0]
        rank = len(spread.meta["val"].shape)
        if rank != 3 or {dim % rank for dim in node.args[1:]} != {1, 2}:
            continue
        while spread.target is aten.view.default and _same_shape(spread, spread.args[0]):
            spread = spread.args[0]
        if spread.target is not aten.expand.default or spread.args[0].meta["val"].dim() != 2:
            continue
        with graph.inserting_before(node):
            matrix = graph.call_function(aten.t.default, (spread.args[0],))
            sizes = [spread.args[1][0], -1, -1]
            node.replace_all_uses_with(graph.call_function(aten.expand.default, (matrix, sizes)))
    graph.eliminate_dead_code()
    module.recompile()  # type: ignore[operator]
    return module


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    shapes = [node.meta["val"].shape for node in (one, other)]
    return len(shapes[0]) == len(shapes[1]) and all(
        str(a) == str(b) for a, b in zip(*shapes, strict=True)
    )


def _check_update(built: Built, sessions: Sessions) -> float:
    """One step away from the start, where B is not zero and credit passes through it.

    Compared is the change of the adapter or, under an optimiser with state, that state.
    """
    step = built.step
    generator = torch.Generator().manual_seed(0)
    start = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in built.adapter.items()
    }
    inputs = example_inputs(step, built.example, start)
    state = {name: inputs[f"optimizer/{name}"] for name in step.state}
    session, graph = sessions["train"]
    values = {name: inputs[name].numpy() for name in graph.inputs}
    found = dict(zip(graph.outputs, session.run(graph.outputs, values), strict=True))
    batch = (inputs[name] for name in ("x", "y", "w", "learning_rate", "step"))
    _, _, adapter, state = step.train(built.frozen, start, state, *batch)
    worst = 0.0
    for name, value in (state or adapter).items():
        before = torch.zeros(()) if state else start[name]
        key = f"next/optimizer/{name}" if state else f"next/adapter/{name}"
        error = disagreement(value - before, found[key] - before.numpy())
        if error > TOLERANCE:
            raise ExportError(
                f"LiteRT's step is not the step: {key} is off by {error:.1e} of its change; at "
                f"most {TOLERANCE} is rounding. {_REMEDY}"
            )
        worst = max(worst, error)
    return worst


def _own_operators() -> dict[Any, Any]:
    """The compiler's own operators, by what they compute in eager torch: their exact meaning."""
    return {
        getattr(torch.ops.rootlet, name.partition("::")[2]).default: definition._init_fn
        for name, definition in OPDEFS.items()
        if name.startswith("rootlet::")
    }


def _sample(built: Built, graph: Captured, batch: int) -> tuple[Tensor, ...]:
    rows = torch.arange(batch) % len(built.example)
    inputs = example_inputs(built.step, built.example[rows], built.adapter)
    return tuple(inputs[name] for name in graph.inputs)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the converter's progress, warnings and log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
