"""Real data: digits turned by 60 degrees, on a base trained on upright ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rootlet_server.compiler import CompileConfig, build


def turned(images, degrees):
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    rotation = torch.stack(
        [
            torch.stack([angle.cos(), -angle.sin(), torch.tensor(0.0)]),
            torch.stack([angle.sin(), angle.cos(), torch.tensor(0.0)]),
        ]
    )
    x = images.view(-1, 1, 8, 8)
    grid = nn.functional.affine_grid(rotation.expand(len(x), 2, 3), list(x.shape), False)
    return nn.functional.grid_sample(x, grid, align_corners=False).view(-1, 64)


@pytest.fixture(scope="module")
def task():
    """(base, upright x, turned x and y to learn from, turned x and y to test on)."""
    from sklearn.datasets import load_digits

    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(digits.data).float()[order] / 16
    y = torch.from_numpy(digits.target).long()[order]
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(base.parameters(), 2e-3)
    for _ in range(40):
        for rows in torch.randperm(600).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(base(x[rows]), y[rows]).backward()
            optimizer.step()
    z = turned(x, 60)
    return base, x, (z[600:1200], y[600:1200]), (z[1200:], y[1200:])


def accuracy_after_fit(task, head_only=False, **options):
    base, upright, (x, y), (test_x, test_y) = task
    built = build(base, upright[:128], CompileConfig(**options))
    step, adapter = built.step, dict(built.adapter)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(10):
            for rows in torch.randperm(len(x), generator=generator).split(16):
                _, _, moved, _ = step.train(
                    built.frozen, adapter, {}, x[rows], y[rows],
                    torch.ones(len(rows)), torch.tensor(0.01),
                )  # fmt: skip
                adapter = {
                    k: adapter[k] if head_only and "lora" in k else v for k, v in moved.items()
                }
        weights = torch.ones(len(test_x))
        _, correct, total = step.evaluate(built.frozen, adapter, test_x, test_y, weights)
    return float(correct / total)


def test_calibrated_feedback_learns_nearly_as_well_as_backprop(task):
    dfa = accuracy_after_fit(task)
    backprop = accuracy_after_fit(task, rule="backprop")
    head = accuracy_after_fit(task, head_only=True)
    random = accuracy_after_fit(task, feedback="random")
    found = f"dfa {dfa:.3f}, backprop {backprop:.3f}, head {head:.3f}, random {random:.3f}"
    assert dfa > head + 0.05, found
    assert dfa > random + 0.03, found
    assert dfa > backprop - 0.02, found
