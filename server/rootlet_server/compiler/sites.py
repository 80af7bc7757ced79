"""Where adapters go: the Linear layers and convolutions of a traced model, and its head.

Shape legend: N examples, P positions of one example, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, fx

from rootlet_server.compiler.attention_columns import query_key_columns
from rootlet_server.compiler.chain import Chain, find_chain
from rootlet_server.compiler.errors import CalibrationError, UnsupportedModelError
from rootlet_server.compiler.interpret import CONVOLUTIONS, run
from rootlet_server.compiler.operators import IDENTITY
from rootlet_server.compiler.trace import module_path
from rootlet_server.compiler.windows import Window, find_window

if TYPE_CHECKING:
    from rootlet_server.compiler.trace import Program

aten = torch.ops.aten
Fold = Literal["none", "batch_major", "position_major"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the examples of a batch are in a site's tensors.

    Attributes:
        channels_first: channels are dimension 1 (a convolution), not the last.
        batch_dim: the dimension that holds the examples.
        fold: whether positions are folded into that dimension, and which of the two varies faster.
    """

    channels_first: bool
    batch_dim: int
    fold: Fold = "none"

    def channels_last(self, t: Tensor) -> Tensor:
        """[..., C] of a tensor in this layout."""
        return t.flatten(2).transpose(1, 2) if self.channels_first else t

    def by_example(self, t: Tensor, positions: int) -> Tensor:
        """[N, C] or [N, P, C] from [..., C] in the order of ``channels_last``."""
        dim = self.batch_dim
        if self.fold != "none":
            batch = t.numel() // (positions * t.shape[-1])
            split = (batch, -1) if self.fold == "batch_major" else (-1, batch)
            t = t.reshape(*t.shape[:dim], *split, *t.shape[dim + 1 :])
            dim += self.fold == "position_major"
        t = t.movedim(dim, 0) if dim else t
        return t.flatten(1) if positions == 1 else t.flatten(1, -2)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One call of a layer that carries an adapter.

    Attributes:
        node: name of the call in the graph.
        module: path of the layer; names the adapter. A layer that is called twice has two sites
            and one adapter.
        layout: where the batch is.
        positions: P, counted at compile time; 1 where a site sees one row per example.
        in_features: of the whole layer; channels times kernel for a convolution.
        out_features: of the whole layer.
        columns: the output columns [start, stop) that the adapter changes; all but attention's
            queries and keys.
        chain: from the site's output to its feedback point.
        window: what a position of the output sees; None where that is one position of the input.
    """

    node: str
    module: str
    layout: Layout
    positions: int
    in_features: int
    out_features: int
    columns: tuple[int, int]
    chain: Chain
    window: Window | None = None

    def inputs(self, h: Tensor) -> Tensor:
        """What A reads, in the layer's layout: h, or its patches where there is a window."""
        return h if self.window is None else self.window.patches(h)

    def rows(self, t: Tensor) -> Tensor:
        """A tensor in this layer's layout as [N, C], or as [N, P, C] where P > 1."""
        return self.by_example(self.channels_last(t))

    def channels_last(self, t: Tensor) -> Tensor:
        """[..., C], the shape that a product with A or B takes."""
        return self.layout.channels_last(t)

    def by_example(self, t: Tensor) -> Tensor:
        """[N, C] or [N, P, C] from [..., C] in the order of ``channels_last``."""
        return self.layout.by_example(t, self.positions)

    @property
    def width(self) -> int:
        """Number of adapted output columns: rows of B."""
        return self.columns[1] - self.columns[0]

    def adapted(self, t: Tensor) -> Tensor:
        """The adapted columns of a [..., C] tensor."""
        return t if self.width == self.out_features else t[..., self.columns[0] : self.columns[1]]

    def adapted_rows(self, t: Tensor) -> Tensor:
        """The adapted columns of a tensor in this layer's layout, [N, C] or [N, P, C]."""
        return self.adapted(self.rows(t))

    def widened(self, t: Tensor) -> Tensor:
        """A tensor over the adapted columns as one over all columns, zero elsewhere."""
        if self.width == self.out_features:
            return t
        return torch.nn.functional.pad(t, (self.columns[0], self.out_features - self.columns[1]))


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last Linear layer; it learns in full.

    Attributes:
        node: its call in the graph.
        module: its path.
        weight, bias: tensor names; bias may be absent.
        features: name of the node whose output [N, F] it reads.
    """

    node: str
    module: str
    weight: str
    bias: str | None
    features: str


def find_head(program: Program) -> Head:
    """The Linear layer whose output is the model's output.

    Raises:
        UnsupportedModelError: the model ends in something else.
    """
    node = program.node(program.output)
    while node.target in IDENTITY:
        node = node.args[0]  # type: ignore[assignment]
    weight = program.parameter(node.args[1]) if node.target is aten.linear.default else None
    if weight is None or len(node.args[0].meta["val"].shape) != 2:  # type: ignore[union-attr]
        raise UnsupportedModelError(
            module_path(node),
            f"the model's output comes from {node.target}, not from a Linear layer on "
            "[batch, features]",
            "End it with a Linear head after pooling, and return its logits (no softmax).",
        )
    bias = program.parameter(node.args[2]) if len(node.args) > 2 else None
    if any(len(tensor.users) > 1 for tensor in node.args[1:] if isinstance(tensor, fx.Node)):
        raise UnsupportedModelError(
            weight.rpartition(".")[0],
            "the head shares its weight or bias with another layer, which has to stay frozen",
            "Give the head tensors of its own.",
        )
    features: fx.Node = node.args[0]  # type: ignore[assignment]
    return Head(
        node=node.name,
        module=weight.rpartition(".")[0],
        weight=weight,
        bias=bias,
        features=features.name,
    )


def find_sites(
    program: Program,
    head: Head,
    example: Tensor,
    target_modules: tuple[str, ...] | None,
    *,
    queries_and_keys: bool = False,
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """Every call that gets an adapter, in graph order, and the layers left out with the reason.

    Attention's queries and keys are left out unless they are asked for.

    Raises:
        UnsupportedModelError: a requested module is not there or cannot carry an adapter.
    """
    every = queries_and_keys or target_modules is not None
    skip = {} if every else query_key_columns(program, example)
    sites, refused = [], {}
    for node in program.graph.nodes:
        weight = program.parameter(node.args[1]) if len(node.args) > 1 else None
        if (
            weight is None
            or node.name == head.node
            or node.target not in (aten.linear.default, *CONVOLUTIONS)
        ):
            continue
        module = weight.rpartition(".")[0]
        if target_modules is not None and not any(_matches(module, t) for t in target_modules):
            continue
        reason = _reason_against(program, node, weight)
        if reason:
            refused[module] = reason
            continue
        columns = _columns(skip.get(node.name), program.tensors[weight].shape[0])
        if isinstance(columns, str):
            refused[module] = columns
        else:
            sites.append(_site(program, node, weight, columns, example))
    if target_modules is not None:
        _check_targets(target_modules, [s.module for s in sites], refused)
    return tuple(sites), refused


def _matches(module: str, target: str) -> bool:
    return module == target or module.endswith("." + target)


def _check_targets(targets: tuple[str, ...], found: list[str], refused: dict[str, str]) -> None:
    for module, reason in refused.items():
        raise UnsupportedModelError(
            module, reason, "Leave it out of target_modules; it stays frozen."
        )
    for target in targets:
        if not any(_matches(module, target) for module in found):
            raise UnsupportedModelError(
                target,
                "no Linear or convolution of that name is used in the forward pass",
                "target_modules takes module-path suffixes; this model has "
                f"{', '.join(found) or 'none'}.",
            )


def _reason_against(program: Program, node: fx.Node, weight: str) -> str | None:
    shape = program.tensors[weight].shape
    inputs = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if node.target in CONVOLUTIONS and shape[1] != inputs[1]:
        return (
            "a grouped or depthwise convolution cannot carry an adapter: its outputs share no input"
        )
    if not any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape):
        return "its input does not depend on the batch"
    return None


def _columns(skipped: Tensor | None, out_features: int) -> tuple[int, int] | str:
    """The columns left after ``skipped``, or why there is no one run of them."""
    if skipped is None or not skipped.any():
        return (0, out_features)
    left = (~skipped).nonzero().flatten()
    if not len(left):
        return "it feeds only attention's queries or keys, where feedback says nothing"
    if int(left[-1] - left[0]) + 1 != len(left):
        return "its values lie between queries and keys, column by column, not in one run"
    return (int(left[0]), int(left[-1]) + 1)


def _site(
    program: Program, node: fx.Node, weight: str, columns: tuple[int, int], example: Tensor
) -> Site:
    shape = program.tensors[weight].shape
    layout = _layout(program, node, example)
    _, kept = run(program, program.tensors, example, keep={node.name})
    window = find_window(node, tuple(shape[2:])) if layout.channels_first else None
    return Site(
        node=node.name,
        module=weight.rpartition(".")[0],
        layout=layout,
        positions=kept[node.name].numel() // (len(example) * int(shape[0])),
        in_features=int(shape[1:].numel()),
        out_features=int(shape[0]),
        columns=columns,
        chain=find_chain(program, node),
        window=None if window is None or window.is_pointwise else window,
    )


def _layout(program: Program, node: fx.Node, example: Tensor) -> Layout:
    shape = node.meta["val"].shape
    channels_first = node.target in CONVOLUTIONS
    batch = program.node(program.x).meta["val"].shape[0].node.expr
    symbolic = [d for d, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    if len(symbolic) != 1 or (channels_first and symbolic != [0]):
        raise UnsupportedModelError(
            module_path(node),
            "the batch is spread over several dimensions here",
            "Keep one dimension for the batch.",
        )
    dim = symbolic[0]
    if shape[dim].node.expr == batch:
        return Layout(channels_first=channels_first, batch_dim=dim)
    return Layout(
        channels_first=channels_first, batch_dim=dim, fold=_fold(program, node, dim, example)
    )


def _fold(program: Program, node: fx.Node, dim: int, example: Tensor) -> Fold:
    """Which rows of a folded dimension belong to example 0, found by changing that example."""
    first = example[:2]
    changed = torch.cat([first[1:], first[1:]])
    values = [
        run(program, program.tensors, x, keep={node.name})[1][node.name] for x in (first, changed)
    ]
    differs = (values[0] != values[1]).movedim(dim, 0).flatten(1).any(1)
    if not differs.any():
        raise CalibrationError(
            f"The first two examples of calibration_x look the same at {module_path(node)}, so "
            "its rows cannot be told apart by example. Put two different ones first."
        )
    half = len(differs) // 2
    if not differs[half:].any():
        return "batch_major"
    if not differs[1::2].any():
        return "position_major"
    raise UnsupportedModelError(
        module_path(node),
        "positions and examples are interleaved in one dimension",
        "Keep the batch in dimension 0.",
    )
