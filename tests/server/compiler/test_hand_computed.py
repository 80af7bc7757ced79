"""Gradients and optimiser steps of a 2x2 model against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler.optimizers import optimize

# x = (1, 2) and label 0. W x = (-1, 2), so relu gives (0, 2) with slopes (0, 1); the head is the
# identity, so z = (0, 2), p_1 = 1 / (1 + e^-2) = 0.880797 and e = p - onehot(0) = (-p_1, p_1).
P = 0.8807970779778823
X, Y = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
FEEDBACK = torch.tensor([[2.0, -1.0], [1.0, 3.0]])


@pytest.fixture(scope="module", params=["calibrated", "lora"])
def built(lab, request):
    """W = [[1, -1], [2, 0]], relu, identity head; A = identity and s = alpha / rank = 2."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 0.0]]))
        model[2].weight.copy_(torch.eye(2))
        model[2].bias.zero_()
    case = replace(lab.case("mlp"), model=model, x=torch.randn(8, 2))
    built = lab.build(case, rank=2, kind=request.param)
    (site,) = built.step.learner.sites
    frozen = {
        **built.frozen,
        f"{site.node}:feedback.q": FEEDBACK.to(torch.int8),
        f"{site.node}:feedback.scale": torch.ones(2, 1),
    }
    adapter = dict(built.adapter)
    if request.param == "lora":
        adapter["0.lora_A"] = torch.eye(2)
    else:
        frozen["0.lora_A:linear"] = torch.eye(2)
    return replace(built, frozen=frozen, adapter=adapter)


def assert_close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_dfa(lab, built):
    # e M = (-2 p + p, p + 3 p) = (-p, 4 p); times the slopes: (0, 4 p). dB = 2 delta (A x)^T.
    found = lab.gradients(built, "dfa", X, Y)
    assert_close(found["0.lora_B"], [[0.0, 0.0], [8 * P, 16 * P]])
    assert_close(found["2.weight"], [[0.0, -2 * P], [0.0, 2 * P]])
    assert_close(found["2.bias"], [-P, P])


def test_backprop(lab, built):
    # e W_head = (-p, p); times the slopes: (0, p).
    found = lab.gradients(built, "backprop", X, Y)
    assert_close(found["0.lora_B"], [[0.0, 0.0], [2 * P, 4 * P]])
    assert_close(found["2.weight"], [[0.0, -2 * P], [0.0, 2 * P]])
    assert_close(found["2.bias"], [-P, P])


def test_dfa_of_a_trained_a(lab, built):
    if not built.step.learner.trains_a:
        assert "0.lora_A" not in lab.gradients(built, "dfa", X, Y)
        return
    # B = I / 4: a = (-1, 2) + 2 (1, 2) / 4 = (-0.5, 3), z = (0, 3), q = 1 / (1 + e^-3).
    # delta = (0, 4 q); dA = 2 (B^T delta) x^T = (0, 2 q)^T (1, 2).
    q = 0.9525741268224334
    moved = replace(built, adapter={**built.adapter, "0.lora_B": torch.eye(2) / 4})
    found = lab.gradients(moved, "dfa", X, Y)
    assert_close(found["0.lora_B"], [[0.0, 0.0], [8 * q, 16 * q]])
    assert_close(found["0.lora_A"], [[0.0, 0.0], [2 * q, 4 * q]])


def test_loss_metric_and_an_sgd_step(built):
    step = built.step
    with torch.no_grad():
        loss, metric, adapter, state = step.train(
            built.frozen, built.adapter, {}, X, Y, torch.ones(1), torch.tensor(0.1)
        )
    assert loss.item() == pytest.approx(2.1269280110429727)  # -log(1 - p) = log(1 + e^2)
    assert metric.item() == 0.0
    assert state == {}
    assert_close(adapter["0.lora_B"], [[0.0, 0.0], [-0.8 * P, -1.6 * P]])
    assert_close(adapter["2.bias"], [0.1 * P, -0.1 * P])


def test_two_adam_steps():
    # g = 1, then -0.5. Step 1: m/c = 1, v/c = 1. Step 2: m = 0.09 - 0.05 = 0.04, m/c = 0.04 / 0.19;
    # v = 0.000999 + 0.00025 = 0.001249, v/c = 0.001249 / 0.001999 = 0.790451^2.
    # The move is -0.1 * 0.210526 / 0.790451 = -0.0266337.
    p, state = {"p": torch.tensor(1.0)}, {"m/p": torch.tensor(0.0), "v/p": torch.tensor(0.0)}
    rate = torch.tensor(0.1)
    p, state = optimize("adam", p, {"p": torch.tensor(1.0)}, state, rate, torch.tensor(1.0))
    assert p["p"].item() == pytest.approx(0.9, rel=1e-6)
    assert state["m/p"].item() == pytest.approx(0.1)
    assert state["v/p"].item() == pytest.approx(0.001)
    p, state = optimize("adam", p, {"p": torch.tensor(-0.5)}, state, rate, torch.tensor(2.0))
    assert state["m/p"].item() == pytest.approx(0.04)
    assert state["v/p"].item() == pytest.approx(0.001249)
    assert p["p"].item() - 0.9 == pytest.approx(-0.0266337, rel=1e-5)  # 0.9 is known to 6e-8


def test_adam_without_a_step_number_is_an_error():
    with pytest.raises(ValueError, match="counted from 1"):
        optimize("adam", {}, {}, {}, torch.tensor(0.1))
