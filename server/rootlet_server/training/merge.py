"""What devices learned goes into the base: ``W <- W + s B A`` at every site, and the new head.

A is the one that devices multiplied by: as stored, rounded where the bundle holds it in int8. The
merged model computes, up to the rounding of float32, what the float base with the adapter computes.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rootlet_server.compiler.learner import float_a
from rootlet_server.training.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from rootlet_server.compiler.build import Built
    from rootlet_server.compiler.sites import Site

PACKED = ("q_proj", "k_proj", "v_proj")


@torch.no_grad()
def merge_adapter(
    model: nn.Module, built: Built, adapter: Mapping[str, Tensor | npt.ArrayLike]
) -> nn.Module:
    """A copy of a base with an adapter folded in.

    Args:
        model: the base that ``built`` was made from.
        built: of the bundle that devices trained (``CompiledBundle.built``).
        adapter: what they learned, by name.

    Raises:
        MergeError: the adapter is not one of this bundle, or the model not its base.
    """
    values = {name: torch.as_tensor(value).float() for name, value in adapter.items()}
    expected = built.step.adapter
    for name in dict.fromkeys([*expected, *values]):
        found = tuple(values[name].shape) if name in values else None
        wanted = tuple(expected[name]) if name in expected else None
        if found != wanted:
            raise MergeError(
                f"{name} has shape {found} in the adapter and {wanted} in the bundle; merge the "
                "adapter of the bundle that devices trained."
            )
        if not values[name].isfinite().all():
            raise MergeError(f"{name} holds NaN or infinity; go back to an earlier round.")
    merged = copy.deepcopy(model)
    learner = built.step.learner
    for site in {site.module: site for site in learner.sites}.values():
        a_in_r = (
            values[f"{site.module}.lora_A"].t()
            if learner.trains_a
            else float_a(built.frozen, site.module)
        )
        change = learner.scale * values[f"{site.module}.lora_B"] @ a_in_r.t()
        rows = _rows(merged, site)
        rows += change.to(rows).view_as(rows)
    head = learner.head.module
    for kind in ("weight", "bias"):
        if f"{head}.{kind}" in values:
            _parameter(merged, f"{head}.{kind}").copy_(values[f"{head}.{kind}"])
    return merged


def _rows(model: nn.Module, site: Site) -> Tensor:
    """The rows of the site's weight that its adapter changes; a view."""
    parent, _, name = site.module.rpartition(".")
    owner = _module(model, parent)
    if isinstance(owner, nn.MultiheadAttention) and name in PACKED:
        packed: Tensor | None = owner.in_proj_weight
        if packed is not None:
            return packed.data.chunk(3)[PACKED.index(name)]
        return _parameter(model, f"{parent}.{name}_weight".lstrip(".")).data
    weight = _parameter(model, f"{site.module}.weight".lstrip(".")).data
    start, stop = site.columns
    return weight[start:stop]


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise MergeError(
            f"the model has no module {path!r}, which the bundle adapts; pass the base that the "
            "bundle was compiled from."
        ) from error


def _parameter(model: nn.Module, path: str) -> Tensor:
    try:
        return model.get_parameter(path)
    except AttributeError as error:
        raise MergeError(
            f"the model has no parameter {path!r}, which the bundle adapts; pass the base that the "
            "bundle was compiled from."
        ) from error
