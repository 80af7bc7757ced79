"""Curvature against dense matrices made by autograd, in float64, on tiny nets."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from rootlet_server.training.curvature import (
    conjugate_gradient,
    gauss_newton_product,
    hessian_product,
    hutchinson_diagonal,
    top_eigenvalue,
    trained,
)
from rootlet_server.training.hessian_free import HessianFree
from rootlet_server.training.kfac import KFAC, layer_factors
from rootlet_server.training.losses import example_losses

ROUNDING = 1e-5  # losses are float32 whatever the model: a relative 2^-24 over some tens of terms


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def batch(task: str, examples: int = 5):
    torch.manual_seed(1)
    x = torch.randn(examples, 3)
    y = torch.randint(0, 3, (examples,)) if task == "classification" else torch.randn(examples, 3)
    return x, y


def as_vector(parts) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


def as_parts(model: nn.Module, vector: torch.Tensor) -> list[torch.Tensor]:
    sizes = [p.numel() for p in model.parameters()]
    return [v.view_as(p) for v, p in zip(vector.split(sizes), model.parameters(), strict=True)]


def dense_hessian(model: nn.Module, task: str, x, y) -> torch.Tensor:
    names = list(trained(model))

    def loss(vector):
        state = dict(zip(names, as_parts(model, vector), strict=True))
        return example_losses(task, functional_call(model, state, (x,)), y).mean()

    return torch.autograd.functional.hessian(loss, as_vector(model.parameters()).detach())


def dense_fisher(model: nn.Module, task: str, x) -> torch.Tensor:
    """``mean_n E_y[s s^T]`` for scores s, over every class (or the unit Gaussian of the mse)."""
    names = list(trained(model))

    def outputs(vector):
        return functional_call(model, dict(zip(names, as_parts(model, vector), strict=True)), (x,))

    jacobian = torch.autograd.functional.jacobian(outputs, as_vector(model.parameters()).detach())
    q = outputs(as_vector(model.parameters()).detach()).softmax(1)
    total = torch.zeros(jacobian.shape[2], jacobian.shape[2])
    for n in range(len(x)):
        for k in range(3):
            if task == "classification":
                score = jacobian[n].T @ (torch.eye(3)[k] - q[n])
                total += q[n, k] * torch.outer(score, score)
            else:
                total += 2 / 3 * torch.outer(jacobian[n, k], jacobian[n, k])
    return total / len(x)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_hessian_is_the_hessian(task):
    model, (x, y) = net(), batch(task)
    product, dense = hessian_product(model, task, x, y), dense_hessian(model, task, x, y)
    found = torch.stack([as_vector(product(as_parts(model, row))) for row in torch.eye(len(dense))])
    torch.testing.assert_close(found, dense, rtol=0, atol=ROUNDING * float(dense.abs().max()))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_gauss_newton_is_the_exact_fisher(task):
    model, (x, _) = net(), batch(task)
    product, dense = gauss_newton_product(model, task, x), dense_fisher(model, task, x)
    found = torch.stack([as_vector(product(as_parts(model, row))) for row in torch.eye(len(dense))])
    torch.testing.assert_close(found, dense, rtol=0, atol=ROUNDING * float(dense.abs().max()))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_factors_of_one_example_are_its_exact_fisher(task):
    model, (x, _) = net(), batch(task, examples=1)
    layers = [model[0], model[2]]
    factors = layer_factors(model, layers, task, x)
    dense = dense_fisher(model, task, x)
    start = 0
    for layer in layers:
        out, inside = layer.weight.shape
        a, g = factors[layer]
        block = dense[start : start + out * (inside + 1), start : start + out * (inside + 1)]
        # Ours is ordered [out, in + 1]; the parameters' order is the weight, then the bias.
        order = [o * (inside + 1) + i for o in range(out) for i in range(inside)]
        order += [o * (inside + 1) + inside for o in range(out)]
        ours = torch.kron(g, a)[order][:, order]
        torch.testing.assert_close(ours, block, rtol=0, atol=ROUNDING * float(block.abs().max()))
        start += out * (inside + 1)


def test_a_1x1_convolution_at_one_position_has_the_factors_of_a_linear_layer():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(3, 4))
    convolution = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    convolution[0].weight.data = linear[0].weight.data[:, :, None, None].clone()
    convolution[0].bias.data = linear[0].bias.data.clone()
    x = torch.randn(5, 3)
    a, b = (
        layer_factors(model, [model[0]], "classification", inputs)[model[0]]
        for model, inputs in ((linear, x), (convolution, x[:, :, None, None]))
    )
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other)


def test_kfac_steps_by_the_dense_inverse_of_its_factors():
    model, (x, y) = net(), batch("classification", examples=1)
    optimizer = KFAC(model, 0.1, momentum=0.0, damping=0.04, kl_clip=1e9)
    optimizer.observe(model, "classification", x)
    example_losses("classification", model(x), y).mean().backward()
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    factors = [
        (optimizer.state[layer.weight]["a"], optimizer.state[layer.weight]["g"])
        for layer in (model[0], model[2])
    ]
    optimizer.step()
    for layer, old, (a, g) in zip((model[0], model[2]), before, factors, strict=True):
        pi = float(((a.trace() / len(a)) / (g.trace() / len(g))).sqrt())
        damped = torch.kron(g + 0.2 / pi * torch.eye(len(g)), a + 0.2 * pi * torch.eye(len(a)))
        gradient = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], 1).flatten()
        step = torch.linalg.solve(damped, gradient).view(len(g), len(a))[:, :-1]
        torch.testing.assert_close(layer.weight, old - 0.1 * step, rtol=1e-3, atol=1e-5)


def test_power_iteration_and_cg_agree_with_dense_algebra():
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix, b = root @ root.T, torch.randn(6, dtype=torch.float64)

    def product(v):
        return [matrix @ v[0]]

    rng = torch.Generator().manual_seed(0)
    top = top_eigenvalue(product, [b], rng, iterations=500, tolerance=1e-9)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-5)
    (d,), quadratic = conjugate_gradient(product, [b], damping=0.5, tolerance=1e-10)
    exact = torch.linalg.solve(matrix + 0.5 * torch.eye(6), b)
    torch.testing.assert_close(d, exact)
    assert quadratic == pytest.approx(float(-0.5 * b @ exact))


def test_hutchinson_is_unbiased_and_exact_on_a_diagonal():
    rng = torch.Generator().manual_seed(0)
    diagonal = torch.arange(1.0, 6.0)
    like = [torch.zeros(5)]
    (once,) = hutchinson_diagonal(lambda v: [diagonal * v[0]], like, rng)
    torch.testing.assert_close(once, diagonal)
    matrix = torch.diag(diagonal) + 0.3 * (1 - torch.eye(5))
    drawn = [hutchinson_diagonal(lambda v: [matrix @ v[0]], like, rng)[0] for _ in range(2000)]
    # Each entry varies by sum_j m_ij^2 = 0.36: the mean of 2,000 by 0.013; five of those.
    assert (torch.stack(drawn).mean(0) - diagonal).abs().max() < 0.07


def test_hessian_free_solves_least_squares_in_one_step_and_never_goes_up():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2), torch.randn(40, 4)
    y = x @ torch.randn(4, 2) + 1
    optimizer = HessianFree(model.parameters(), damping=1e-8, cg_iterations=50)

    def loss():
        return example_losses("regression", model(x), y).mean()

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    first = optimizer.step(closure, product=gauss_newton_product(model, "regression", x), loss=loss)
    assert float(first) > 1
    with torch.no_grad():
        assert float(loss()) < 1e-8
