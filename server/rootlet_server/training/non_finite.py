"""Where the finite numbers end: which layer of a model first makes NaN or infinity of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rootlet_server.training.losses import example_losses

if TYPE_CHECKING:
    from collections.abc import Callable


def find_layer(model: nn.Module, task: str, x: Tensor, y: Tensor) -> tuple[str, str]:
    """(path of the layer, what is wrong with it); two empty strings where all is finite.

    Looked at in this order: the examples, the weights, the outputs of the layers in the order in
    which they are computed, the loss, the gradients of the weights from the output backwards.
    """
    if x.is_floating_point() and not x.isfinite().all():
        return "", "its examples hold NaN or infinity"
    for name, p in model.named_parameters():
        if not _finite(p):
            return name.rpartition(".")[0], f"its {name.rpartition('.')[2]} is not finite"
    found: list[str] = []
    computed: list[str] = []
    handles = [
        module.register_forward_hook(_noting(path, found, computed))
        for path, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        with torch.enable_grad():
            output = model(x)
            loss = example_losses(task, output, y).mean()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0], "its output is not finite"
    if not output.isfinite().all():
        return computed[-1] if computed else "", "what follows it is not finite"
    if not loss.isfinite():
        return "", "the loss of its finite outputs is not finite"
    return _in_gradients(model, loss, computed)


def _in_gradients(model: nn.Module, loss: Tensor, computed: list[str]) -> tuple[str, str]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    broken = {
        name.rpartition(".")[0]
        for name, grad in zip(named, grads, strict=True)
        if grad is not None and not _finite(grad)
    }
    for path in reversed(computed):
        if path in broken:
            return path, "its gradient is not finite"
    return (next(iter(broken)), "its gradient is not finite") if broken else ("", "")


def _finite(tensor: Tensor) -> bool:
    whole: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(whole.isfinite().all())


def _noting(path: str, found: list[str], computed: list[str]) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        computed.append(path)
        if (
            isinstance(output, Tensor)
            and output.is_floating_point()
            and not output.isfinite().all()
        ):
            found.append(path)

    return note
