"""K-FAC (Martens & Grosse 2015; for convolutions Grosse & Martens 2016), small and exact in parts.

A layer ``s = W a`` (the bias is a last column of W, on a constant 1) has the Fisher block

    F = E[(a a^T) kron (g g^T)] ~ A kron G,   A = E[sum_p a_p a_p^T],   G = E[sum_p g_p g_p^T] / P

over P positions, where g is the gradient of the log-likelihood at s. G is no Monte Carlo estimate:
with ``S S^T = diag(q) - q q^T``, S_k = sqrt(q_k) (e_k - q), it is the sum of one backward pass for
each of the K columns (for the squared error, S = sqrt(2/K) I). The step, with factored damping:

    D = (G + sqrt(damping) / pi I)^-1 dW (A + pi sqrt(damping) I)^-1,  pi^2 = tr(A)/|A| : tr(G)/|G|

times ``min(1, sqrt(kl_clip / (rate^2 <D, dW>)))``. Linear layers and convolutions without groups
have factors; all other parameters (norms, embeddings) take steps of gradient descent.

Where one example fills the batch, ``A kron G`` is the exact Fisher block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

TINY = 1e-12
Layer = nn.Linear | nn.Conv2d


class KFAC(Optimizer):
    """The optimiser; ``observe`` sees a batch before the step that uses it.

    Args:
        model: whose layers it preconditions.
        lr: step size.
        momentum: of the preconditioned steps.
        damping: as above.
        decay: of the running averages of A and G.
        update_every: steps between two looks at the factors.
        kl_clip: as above.
        weight_decay: added to the gradient of matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        momentum: float = 0.9,
        damping: float = 1e-2,
        decay: float = 0.95,
        update_every: int = 10,
        kl_clip: float = 1e-2,
        weight_decay: float = 0.0,
    ) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "step": 0})
        self.momentum, self.damping, self.decay = momentum, damping, decay
        self.update_every, self.kl_clip = update_every, kl_clip
        self.layers: list[Layer] = [
            m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _has_factors(m)
        ]

    @torch.no_grad()
    def observe(self, model: nn.Module, task: str, x: Tensor) -> None:
        """Update the factors from a batch, where their turn has come."""
        group = self.param_groups[0]
        if group["step"] % self.update_every:
            return
        for layer, (a, g) in layer_factors(model, self.layers, task, x).items():
            state = self.state[layer.weight]
            for name, new in (("a", a), ("g", g)):
                state[name] = new if name not in state else torch.lerp(new, state[name], self.decay)
            pi = ((a.trace() / len(a)) / (g.trace() / len(g)).clamp_min(TINY)).sqrt()
            pi = pi.clamp(1e-3, 1e3)
            root = self.damping**0.5
            state["inverse_a"] = _inverse(state["a"], float(pi) * root)
            state["inverse_g"] = _inverse(state["g"], root / float(pi))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients that are there."""
        if closure is not None:
            raise ValueError("KFAC.step takes no closure: call backward first")
        group = self.param_groups[0]
        group["step"] += 1
        directions: dict[Tensor, Tensor] = {}
        for layer in self.layers:
            directions |= self._preconditioned(layer, group["weight_decay"])
        product = sum(
            float((d * p.grad).sum()) for p, d in directions.items() if p.grad is not None
        )
        scale = min(1.0, (self.kl_clip / max(group["lr"] ** 2 * product, TINY)) ** 0.5)
        for p in group["params"]:
            if p.grad is None:
                continue
            direction = scale * directions[p] if p in directions else p.grad
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.mul_(self.momentum).add_(direction)
            p.sub_(buffer, alpha=group["lr"])

    def _preconditioned(self, layer: Layer, weight_decay: float) -> dict[Tensor, Tensor]:
        weight, bias = layer.weight, layer.bias
        if weight.grad is None or "inverse_a" not in self.state[weight]:
            return {}
        rows = (weight.grad + weight_decay * weight).flatten(1)
        if bias is not None and bias.grad is not None:
            rows = torch.cat([rows, bias.grad.unsqueeze(1)], 1)
        state = self.state[weight]
        d: Tensor = state["inverse_g"] @ rows @ state["inverse_a"]
        if bias is None:
            return {weight: d.view_as(weight)}
        return {weight: d[:, :-1].reshape(weight.shape), bias: d[:, -1]}


def _has_factors(module: Layer) -> bool:
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or isinstance(module.padding, str)):
        return False
    return module.weight.requires_grad


def _inverse(factor: Tensor, damping: float) -> Tensor:
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(factor + damping * identity))


def layer_factors(
    model: nn.Module, layers: list[Layer], task: str, x: Tensor
) -> dict[Layer, tuple[Tensor, Tensor]]:
    """A [in + 1, in + 1] (without bias [in, in]) and G [out, out] of every layer on a batch."""
    inputs: dict[Layer, Tensor] = {}
    outputs: dict[Layer, Tensor] = {}

    def note(layer: Layer, args: tuple[Any, ...], output: Tensor) -> None:
        inputs[layer], outputs[layer] = args[0].detach(), output

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.enable_grad():
            z_NK = model(x).float()
    finally:
        for handle in handles:
            handle.remove()
    called = [layer for layer in layers if layer in outputs]
    totals = [torch.zeros((), device=z_NK.device)] * len(called)
    for column_NK in likelihood_columns(task, z_NK.detach()):
        grads = torch.autograd.grad(
            z_NK, [outputs[layer] for layer in called], column_NK, retain_graph=True
        )
        for n, (layer, grad) in enumerate(zip(called, grads, strict=True)):
            g = _rows(layer, grad)
            totals[n] = totals[n] + torch.einsum("npi,npj->ij", g, g) / (len(g) * g.shape[1])
    return {
        layer: (_input_factor(layer, inputs[layer]), g)
        for layer, g in zip(called, totals, strict=True)
    }


def likelihood_columns(task: str, z_NK: Tensor) -> list[Tensor]:
    """The columns S_k [N, K] of ``S S^T = d^2 l/dz^2``."""
    identity = torch.eye(z_NK.shape[1], dtype=z_NK.dtype, device=z_NK.device)
    if task == "regression":
        return [(2 / z_NK.shape[1]) ** 0.5 * row.expand_as(z_NK) for row in identity]
    q_NK = z_NK.softmax(1)
    return [q_NK[:, k : k + 1].sqrt() * (row - q_NK) for k, row in enumerate(identity)]


def _rows(layer: Layer, t: Tensor) -> Tensor:
    """[N, P, C] of a layer's output."""
    if isinstance(layer, nn.Conv2d):
        return t.flatten(2).transpose(1, 2)
    return t.flatten(1, -2) if t.dim() > 2 else t.unsqueeze(1)


def _input_factor(layer: Layer, h: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        geometry: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        a = F.unfold(h, *geometry).transpose(1, 2)
    else:
        a = _rows(layer, h)
    if layer.bias is not None:
        a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
    return torch.einsum("npi,npj->ij", a, a) / len(a)
