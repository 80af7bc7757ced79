"""Derivatives written for the exporter are those of autograd."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler.decompositions import export_decompositions

unfold_backward = export_decompositions()[torch.ops.aten.unfold_backward.default]


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize(
    ("size", "step"), [(5, 1), (5, 2), (4, 2), (3, 3), (2, 3), (1, 4), (11, 2)]
)
def test_the_gradient_of_unfold(dim, size, step):
    x = torch.randn(11, 12, 13, dtype=torch.float64, requires_grad=True)
    windows = x.unfold(dim, size, step)
    grad = torch.randn_like(windows)
    (expected,) = torch.autograd.grad(windows, x, grad)
    found = unfold_backward(grad, list(x.shape), dim, size, step)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
