"""The step as an ``ExportedProgram``: frozen tensors as constants, the batch dynamic."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from rootlet_runtime.optimizers import OPTIMIZERS
from rootlet_server.compiler.config import LARGEST_BATCH
from rootlet_server.compiler.decompositions import export_decompositions, unlike
from rootlet_server.compiler.errors import ExportError
from rootlet_server.compiler.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rootlet_server.compiler.steps import Step

GraphName = Literal["train", "evaluate", "predict", "grads", "encode"]
BY_EXAMPLE = ("x", "y", "w", "teacher", "teacher_weight")


@dataclass(frozen=True, kw_only=True)
class Captured:
    """An exported graph with the names of what goes in and comes out, in order."""

    program: torch.export.ExportedProgram
    inputs: list[str]
    outputs: list[str]
    dynamic_shapes: tuple[Any, ...]


class _Graph(nn.Module):
    """``function(frozen, batch inputs, adapter and state)`` with the frozen tensors as buffers."""

    def __init__(
        self, function: Callable[..., tuple[Tensor, ...]], frozen: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.function = function
        self.keys = {f"frozen_{i}": name for i, name in enumerate(frozen)}
        for buffer, name in self.keys.items():
            self.register_buffer(buffer, frozen[name])

    def forward(self, batch: list[Tensor], learned: list[Tensor]) -> tuple[Tensor, ...]:
        frozen = {name: getattr(self, buffer) for buffer, name in self.keys.items()}
        return self.function(frozen, batch, learned)


def signature(step: Step, graph: GraphName) -> tuple[list[str], list[str], list[str]]:
    """(batch inputs, learned inputs, outputs) of a graph, by the names of the contract."""
    learned = [f"adapter/{name}" for name in step.adapter]
    if graph == "predict":
        return ["x"], learned, ["output"]
    if graph == "encode":
        return ["x"], [], ["latent"]
    if graph == "evaluate":
        return ["x", "y", "w"], learned, ["loss_sum", "metric_sum", "weight_sum"]
    if graph == "grads":
        sums = ["loss_sum", "metric_sum", "weight_sum"]
        return (
            ["x", "y", "w", "max_grad_norm"],
            learned,
            sums + [f"grads/{name}" for name in step.adapter],
        )
    learned += [f"optimizer/{name}" for name in step.state]
    batch = [
        "x",
        "y",
        "w",
        "learning_rate",
        *(["teacher", "teacher_weight"] if step.distils else []),
        *(["step"] if OPTIMIZERS[step.optimizer].needs_step or RULES[step.rule].needs_step else []),
    ]
    return batch, learned, ["loss", "metric", *(f"next/{name}" for name in learned)]


def _function(step: Step, graph: GraphName) -> Callable[..., tuple[Tensor, ...]]:
    names, count = list(step.adapter), len(step.adapter)
    batch_names = signature(step, graph)[0]

    def train(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        adapter = dict(zip(names, learned[:count], strict=True))
        state = dict(zip(step.state, learned[count:], strict=True))
        inputs = dict(zip(batch_names, batch, strict=True))
        loss, metric, adapter, state = step.train(frozen, adapter, state, **inputs)
        return loss, metric, *(adapter[n] for n in names), *(state[n] for n in step.state)

    def evaluate(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        return step.evaluate(frozen, dict(zip(names, learned, strict=True)), *batch)

    def predict(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        return (step.predict(frozen, dict(zip(names, learned, strict=True)), *batch),)

    def grads(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        adapter = dict(zip(names, learned, strict=True))
        *sums, by_name = step.gradients(frozen, adapter, *batch)
        return *sums, *(by_name[n] for n in names)

    def encode(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        del learned
        return (step.encode(frozen, *batch),)

    functions = {"train": train, "evaluate": evaluate, "predict": predict, "grads": grads}
    return {**functions, "encode": encode}[graph]


def example_inputs(step: Step, x: Tensor, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One input of every name, for tracing; none share memory, or the exporter would merge them.

    ``x`` is what the graph takes: a latent, for all but ``predict`` and ``encode`` of a cut model.
    """
    n, k = len(x), step.learner.program.num_outputs
    y = (
        torch.zeros(n, dtype=torch.int64)
        if step.learner.task == "classification"
        else torch.zeros(n, k)
    )
    return {
        "x": x.clone(),
        "y": y,
        "w": torch.ones(n),
        "teacher": torch.full((n, k), 1 / k),
        "teacher_weight": torch.full((n,), 0.25),
        "learning_rate": torch.tensor(0.01),
        "max_grad_norm": torch.tensor(1.0),
        "step": torch.tensor(1.0),
        **{f"adapter/{name}": value.clone() for name, value in adapter.items()},
        **{
            f"optimizer/{name}": torch.zeros(adapter[name.partition("/")[2]].shape)
            for name in step.state
        },
    }


def capture(
    step: Step,
    graph: GraphName,
    frozen: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    x: Tensor,
) -> Captured:
    """Trace one graph of a step on example inputs, with a dynamic batch."""
    batch_names, learned_names, outputs = signature(step, graph)
    if graph not in ("predict", "encode"):
        x = step.encode(frozen, x)
    example = example_inputs(step, x, adapter)
    batch, learned = [example[n] for n in batch_names], [example[n] for n in learned_names]
    function = _function(step, graph)
    dim = torch.export.Dim("batch", min=2, max=LARGEST_BATCH)
    shapes = (
        [{0: dim} if n in BY_EXAMPLE else None for n in batch_names],
        [None] * len(learned),
    )
    with warnings.catch_warnings(), torch.no_grad(), _refusing(graph):
        warnings.simplefilter("ignore")
        if graph in ("train", "grads") and RULES[step.rule].uses_autograd:
            function = _trace_autograd(function, frozen, batch, learned)
        module = _Graph(function, frozen).eval()
        exported = torch.export.export(
            module, (batch, learned), dynamic_shapes=shapes, strict=False
        )
    return Captured(
        program=exported, inputs=batch_names + learned_names, outputs=outputs, dynamic_shapes=shapes
    )


@contextmanager
def _refusing(graph: GraphName) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ExportError(
            f"The {graph} graph could not be traced ({type(error).__name__}): {first} "
            "Please report the model; nothing was written."
        ) from error


def _trace_autograd(
    function: Callable[..., tuple[Tensor, ...]],
    frozen: Mapping[str, Tensor],
    batch: list[Tensor],
    learned: list[Tensor],
) -> Callable[..., tuple[Tensor, ...]]:
    """Trace through ``torch.func.grad`` ahead of the export, which cannot do it itself."""
    keys = list(frozen)

    def flat(
        frozen_values: list[Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        return function(dict(zip(keys, frozen_values, strict=True)), batch, learned)

    batch = _with_distinct_batch(batch, [*frozen.values(), *learned])
    mode = FakeTensorMode(shape_env=ShapeEnv())
    # make_fx's own "symbolic" leaves every size open, and solves equations over them
    with mode, enable_python_dispatcher():
        inputs = [
            [mode.from_tensor(frozen[k], static_shapes=True) for k in keys],
            [mode.from_tensor(t, symbolic_context=_open_batch(t)) for t in batch],
            [mode.from_tensor(t, static_shapes=True) for t in learned],
        ]
        traced = make_fx(flat, decomposition_table=export_decompositions())(*inputs)
    traced.graph.eliminate_dead_code()
    traced.recompile()

    def replay(
        frozen: Mapping[str, Tensor], batch: list[Tensor], learned: list[Tensor]
    ) -> tuple[Tensor, ...]:
        return traced([frozen[k] for k in keys], batch, learned)  # type: ignore[no-any-return]

    return replay


def _open_batch(t: Tensor) -> StatelessSymbolicContext[Any, Any]:
    sizes = [DimDynamic.DUCK if t.dim() and i == 0 else DimDynamic.STATIC for i in range(t.dim())]
    return StatelessSymbolicContext(dynamic_sizes=sizes)


def _with_distinct_batch(batch: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Repeat examples until the batch's size is no other dimension's."""
    sizes = {size for t in others for size in t.shape}
    n = unlike(sizes.union(*(t.shape[1:] for t in batch)))
    rows = torch.arange(n) % len(batch[0])
    return [t[rows] if t.dim() else t for t in batch]
