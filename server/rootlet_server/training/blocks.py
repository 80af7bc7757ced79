"""The repeated blocks of a model: what is recomputed under checkpointing and sharded by FSDP2."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from rootlet_server.training.errors import FullTrainingConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_blocks(model: nn.Module, named: tuple[str, ...] = ()) -> list[nn.Module]:
    """The blocks of a model, in its own order.

    Args:
        model: any module.
        named: paths of blocks, or of containers of blocks; empty takes the children of the
            ``ModuleList`` or ``Sequential`` that holds the most parameters in two or more children
            of one class.

    Raises:
        FullTrainingConfigError: a path that the model does not have.
    """
    modules = dict(model.named_modules())
    if named:
        missing = [path for path in named if path not in modules]
        if missing:
            raise FullTrainingConfigError(
                f"engine.blocks: the model has no module {missing[0]!r}; it has "
                f"{', '.join(sorted(filter(None, modules)))[:400]}."
            )
        found: list[nn.Module] = []
        for path in named:
            module = modules[path]
            is_container = isinstance(module, nn.ModuleList | nn.Sequential)
            found += list(module.children()) if is_container else [module]
        return found
    best: list[nn.Module] = []
    for module in modules.values():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            children = [c for c in module.children() if any(True for _ in c.parameters())]
            same = len(children) > 1 and len({type(child) for child in children}) == 1
            composite = same and any(True for _ in children[0].children())
            if composite and _size(children) > _size(best):
                best = children
    return best


def _size(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@contextmanager
def recomputed(blocks: list[nn.Module]) -> Iterator[None]:
    """Recompute the blocks' activations in the backward pass (Chen et al. 2016), while it lasts.

    Only a block's inputs are kept; random numbers are drawn again as they were.
    """
    kept = [(block, block.forward) for block in blocks]
    for block, forward in kept:
        block.forward = partial(_recompute, forward)
    try:
        yield
    finally:
        for block, _ in kept:
            del block.forward


def _recompute(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
