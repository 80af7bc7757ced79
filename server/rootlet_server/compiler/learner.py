"""The learner: a traced model with adapters, as pure functions of (frozen, adapter, batch).

Shape legend: N examples, P positions, K outputs, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rootlet_server.compiler.int8 import row_int8_matmul
from rootlet_server.compiler.interpret import run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from rootlet_server.compiler.blocks import Point
    from rootlet_server.compiler.config import FeedbackName, Task
    from rootlet_server.compiler.interpret import Wrapper
    from rootlet_server.compiler.sites import Head, Site
    from rootlet_server.compiler.trace import Program


def frozen_a_key(module: str) -> str:
    """Where the base keeps a frozen A, transposed: [in, r]; in int8 with ``.q`` and ``.scale``."""
    return f"{module}.lora_A:linear"


def float_a(frozen: Mapping[str, Tensor], module: str) -> Tensor:
    """A frozen A as floating point, [in, r], however it is stored."""
    key = frozen_a_key(module)
    if key in frozen:
        return frozen[key]
    scale = frozen[f"{key}.scale"]
    return frozen[f"{key}.q"].to(scale.dtype) * scale


def _through_frozen_a(site: Site, frozen: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """A h, [..., r]; positions are multiplied in int8 where A is stored so, windows are not."""
    if site.window is not None:
        return site.channels_last(site.window.project(h, float_a(frozen, site.module)))
    key, rows = frozen_a_key(site.module), site.channels_last(h)
    if key in frozen:
        return rows @ frozen[key]
    return row_int8_matmul(rows, frozen[f"{key}.q"], frozen[f"{key}.scale"])


@dataclass(frozen=True, kw_only=True)
class Tap:
    """What a site leaves behind for credit assignment.

    Attributes:
        inputs: h (its patches, under a window) in the layer's layout; kept only where A learns.
        projected: s A h, rows [N, r] or [N, P, r].
        output: a, in the layer's own layout.
    """

    inputs: Tensor | None
    projected: Tensor
    output: Tensor


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One forward pass: output [N, K], the head's input [N, F], taps by site, other kept values."""

    output: Tensor
    features: Tensor
    taps: dict[str, Tap]
    kept: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wrappers:
    """Functions by node, and what they note as they are called: taps by site, the head's input."""

    wrap: dict[str, Wrapper]
    taps: dict[str, Tap]
    features: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A program with its sites and its head.

    Attributes:
        program: the traced model.
        sites: where adapters are.
        head: what learns in full.
        task: ``classification`` or ``regression``.
        scale: alpha / rank.
        trains_a: whether A is part of the adapter, or frozen with the base.
        feedback: what a rule that broadcasts reads, and what it is multiplied by.
        points: the tops of the blocks; None where every site is a block of its own, with its
            feedback at its own point.
        float_dtype: precision of the arithmetic; float64 in tests.
    """

    program: Program
    sites: tuple[Site, ...]
    head: Head
    task: Task
    scale: float
    trains_a: bool
    feedback: FeedbackName = "calibrated"
    points: tuple[Point, ...] | None = None
    float_dtype: torch.dtype = torch.float32

    def in_float64(self) -> Learner:
        """The same learner, for tests that compare derivatives."""
        return replace(self, float_dtype=torch.float64)

    def forward(
        self,
        frozen: Mapping[str, Tensor],
        adapter: Mapping[str, Tensor],
        x: Tensor,
        *,
        keep: Collection[str] = (),
        add: Mapping[str, Tensor] | None = None,
        at: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Forward:
        """Run the model: sites compute ``W h + b + s B A h``, the head ``W_head f + b_head``.

        Args:
            frozen: the base and what else stays as it is.
            adapter: what learns.
            x: [N, ...].
            keep: names of nodes whose values are wanted.
            add: added to the outputs of sites, by node; see ``zeros_at_sites``.
            at: what a node's value is passed through before others read it, by node.
        """
        called = self.wrappers(frozen, adapter, add=add, at=at)
        output, kept = run(
            self.program, frozen, x, wrap=called.wrap, keep=keep, float_dtype=self.float_dtype
        )
        return Forward(output=output, features=called.features[0], taps=called.taps, kept=kept)

    def wrappers(
        self,
        frozen: Mapping[str, Tensor],
        adapter: Mapping[str, Tensor],
        *,
        add: Mapping[str, Tensor] | None = None,
        at: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Wrappers:
        """What stands in the place of sites and head; see ``forward`` for the arguments."""
        at = at or {}
        taps: dict[str, Tap] = {}
        features: list[Tensor] = []

        def head(args: tuple[Any, ...], _: Callable[[], Tensor]) -> Tensor:
            features.append(args[0])
            return torch.nn.functional.linear(
                args[0],
                adapter[f"{self.head.module}.weight"],
                adapter.get(f"{self.head.module}.bias"),
            )

        def adapt(site: Site, args: tuple[Any, ...], base: Callable[[], Tensor]) -> Tensor:
            tap = self._adapt(site, frozen, adapter, args[0], base())
            if add is not None:
                tap = replace(tap, output=tap.output + add[site.node])
            taps[site.node] = tap
            return at[site.node](tap.output) if site.node in at else tap.output

        def pass_through(name: str, _: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
            return at[name](compute())

        wrap: dict[str, Wrapper] = {name: partial(pass_through, name) for name in at}
        wrap[self.head.node] = head
        wrap |= {site.node: partial(adapt, site) for site in self.sites}
        return Wrappers(wrap=wrap, taps=taps, features=features)

    def zeros_at_sites(self, examples: int) -> dict[str, Tensor]:
        """A zero for every site's output, by node: to differentiate with respect to outputs."""
        batch = self.program.node(self.program.x).meta["val"].shape[0].node.expr
        zeros = {}
        for site in self.sites:
            sizes = [
                examples * int(size.node.expr / batch)
                if isinstance(size, torch.SymInt)
                else int(size)
                for size in self.program.node(site.node).meta["val"].shape
            ]
            zeros[site.node] = torch.zeros(sizes, dtype=self.float_dtype)
        return zeros

    def _adapt(
        self,
        site: Site,
        frozen: Mapping[str, Tensor],
        adapter: Mapping[str, Tensor],
        h: Tensor,
        base: Tensor,
    ) -> Tap:
        inputs = site.inputs(h) if self.trains_a else None
        if inputs is not None:
            z = site.channels_last(inputs) @ adapter[f"{site.module}.lora_A"].t()
        else:
            z = _through_frozen_a(site, frozen, h)
        z = self.scale * z  # r numbers are fewer than out
        b_r_out = adapter[f"{site.module}.lora_B"].t()
        change = site.widened(z @ b_r_out)
        if site.layout.channels_first:
            change = change.transpose(1, 2).reshape(base.shape)
        return Tap(
            inputs=inputs,
            projected=site.by_example(z),
            output=base + change,
        )
