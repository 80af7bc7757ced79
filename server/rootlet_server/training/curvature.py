"""Products with curvature, without the matrices: Hessian, Gauss-Newton, and what solves with them.

For a loss ``L = mean_n l(z(x_n), y_n)`` over parameters p, all vectors as lists of tensors shaped
like p:

    H v = d/dp <dL/dp, v>                        (Pearlmutter 1994)
    G v = J^T (d^2 l/dz^2) J v / N               (Schraudolph 2002)

with ``d^2 l/dz^2 = diag(q) - q q^T`` for q = softmax(z), and ``(2/K) I`` for the squared error. G
is positive semi-definite, and for these losses it is the Fisher information.

Shape legend: N examples, K outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rootlet_server.training.losses import example_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    Vector = list[Tensor]
    MatVec = Callable[[Vector], Vector]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """``<a, b>``, []."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def hessian_product(model: nn.Module, task: str, x: Tensor, y: Tensor) -> MatVec:
    """V -> H v on a batch; the graph of the gradient is built once and kept."""
    parameters = list(trained(model).values())
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():  # fused attention has one derivative
        loss = example_losses(task, model(x), y).mean()
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(v: Vector) -> Vector:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            found = torch.autograd.grad(
                dot(gradient, v), parameters, retain_graph=True, allow_unused=True
            )
        pairs = zip(parameters, found, strict=True)
        return [torch.zeros_like(p) if h is None else h.detach() for p, h in pairs]

    return product


def gauss_newton_product(model: nn.Module, task: str, x: Tensor) -> MatVec:
    """V -> G v on a batch; J v is the derivative of ``<J^T u, v>`` by u."""
    parameters = list(trained(model).values())
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        z_NK = model(x).float()
        u_NK = torch.zeros_like(z_NK, requires_grad=True)
        pulled = torch.autograd.grad(z_NK, parameters, u_NK, create_graph=True)

    def product(v: Vector) -> Vector:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            (change_NK,) = torch.autograd.grad(dot(pulled, v), u_NK, retain_graph=True)
            curved = loss_curvature(task, z_NK.detach(), change_NK) / len(z_NK)
            return list(torch.autograd.grad(z_NK, parameters, curved, retain_graph=True))

    return product


def loss_curvature(task: str, z_NK: Tensor, u_NK: Tensor) -> Tensor:
    """``(d^2 l/dz^2) u`` of each example, [N, K]."""
    if task == "classification":
        q_NK = z_NK.softmax(1)
        return q_NK * u_NK - q_NK * (q_NK * u_NK).sum(1, keepdim=True)
    return 2 / z_NK.shape[1] * u_NK


def hutchinson_diagonal(product: MatVec, like: Sequence[Tensor], rng: torch.Generator) -> Vector:
    """``z * (H z)`` for random signs z: an unbiased estimate of the diagonal."""
    z = [_signs(p, rng) for p in like]
    return [a * b for a, b in zip(z, product(z), strict=True)]


def _signs(like: Tensor, rng: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, like.shape, generator=rng, device="cpu")
    return (drawn * 2 - 1).to(like)


def top_eigenvalue(
    product: MatVec,
    like: Sequence[Tensor],
    rng: torch.Generator,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
) -> float:
    """The eigenvalue of largest magnitude, by power iteration.

    Args:
        product: v -> M v, M symmetric.
        like: tensors of v's shapes.
        rng: draws the start.
        iterations: at most.
        tolerance: relative change of the Rayleigh quotient at which it ends.
    """
    v = [torch.randn(p.shape, generator=rng).to(p) for p in like]
    norm = dot(v, v).sqrt()
    v = [part / norm for part in v]
    eigenvalue = float("nan")
    for _ in range(iterations):
        m = product(v)
        found = float(dot(v, m))
        norm = dot(m, m).sqrt()
        if float(norm) == 0:
            return 0.0
        v = [part / norm for part in m]
        if abs(found - eigenvalue) <= tolerance * abs(found):
            return found
        eigenvalue = found
    return eigenvalue


def conjugate_gradient(
    product: MatVec,
    b: Sequence[Tensor],
    *,
    damping: float,
    start: Sequence[Tensor] | None = None,
    iterations: int = 50,
    tolerance: float = 1e-4,
) -> tuple[Vector, float]:
    """Solve ``(M + damping I) d = b``.

    Returns:
        d, and the quadratic ``d^T (M + damping I) d / 2 - b^T d`` at it, never above 0 for a
        start at zero.
    """

    def damped(v: Vector) -> Vector:
        return [m + damping * part for m, part in zip(product(v), v, strict=True)]

    d = [torch.zeros_like(part) for part in b] if start is None else [s.clone() for s in start]
    ad = damped(d)
    r = [x - y for x, y in zip(b, ad, strict=True)]
    p, rr = [part.clone() for part in r], dot(r, r)
    stop = tolerance**2 * dot(b, b)
    for _ in range(iterations):
        if float(rr) <= float(stop):
            break
        ap = damped(p)
        alpha = rr / dot(p, ap)
        d = [x + alpha * y for x, y in zip(d, p, strict=True)]
        r = [x - alpha * y for x, y in zip(r, ap, strict=True)]
        new = dot(r, r)
        p = [x + new / rr * y for x, y in zip(r, p, strict=True)]
        rr = new
    # With A d = b - r: d^T A d / 2 - b^T d = -(b + r)^T d / 2.
    quadratic = -0.5 * float(dot([x + y for x, y in zip(b, r, strict=True)], d))
    return d, quadratic
