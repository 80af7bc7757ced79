"""Regression: mean squared error, its derivative, and the step in the devices' engine."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler.losses import loss_terms


def test_the_loss_by_hand():
    # (1 - 0, 3 - 1): squares 1 and 4, mean 2.5; error 2 (1, 2) / 2.
    terms = loss_terms("regression", torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]]))
    assert terms.loss.tolist() == [2.5]
    assert terms.metric.tolist() == [2.5]
    assert terms.error.tolist() == [[1.0, 2.0]]


def test_the_error_is_the_gradient_of_the_loss():
    torch.manual_seed(0)
    output = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for task, y in (
        ("regression", torch.randn(6, 3).double()),
        ("classification", torch.arange(6) % 3),
    ):
        terms = loss_terms(task, output, y)
        (expected,) = torch.autograd.grad(terms.loss.sum(), output)
        torch.testing.assert_close(terms.error.detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
def test_ten_steps_an_evaluation_and_a_prediction_in_the_engine(lab, rule):
    case = lab.case("mlp")
    built = lab.build(case, task="regression", rule=rule, base_dtype="int8")
    engine = lab.engine(built, "train")
    torch.manual_seed(0)
    target = case.x @ torch.randn(12, 5) / 4
    ours, theirs = dict(built.adapter), dict(built.adapter)
    losses, rate = [], torch.tensor(0.02)
    for size in (16, 1, 7) * 3 + (16,):
        x, y, w = case.x[:size], target[:size], torch.ones(size)
        found = engine(
            {"x": x, "y": y, "w": w, "learning_rate": rate}
            | {f"adapter/{k}": v for k, v in theirs.items()}
        )
        with torch.no_grad():
            loss, metric, ours, _ = built.step.train(built.frozen, ours, {}, x, y, w, rate)
        theirs = {k: found[f"next/adapter/{k}"] for k in ours}
        assert metric == loss
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        for key, value in ours.items():
            assert (theirs[key] - value).norm() < 1e-5 * value.norm()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    w = torch.linspace(0, 1, 24)
    adapter = {f"adapter/{k}": v for k, v in ours.items()}
    sums = lab.engine(built, "evaluate")({"x": case.x, "y": target, "w": w, **adapter})
    output = lab.engine(built, "predict")({"x": case.x, **adapter})["output"]
    by_hand = ((output - target).square().mean(1) * w).sum()
    assert sums["loss_sum"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert sums["metric_sum"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert sums["weight_sum"].item() == pytest.approx(12)
