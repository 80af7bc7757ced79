"""Zeroth order: the slope along a direction that is a function of the step alone."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler import CompileError
from rootlet_server.compiler.config import PrivacyConfig
from rootlet_server.compiler.rules import RULES, Batch
from rootlet_server.compiler.rules.zeroth_order import PRIME, _permuted, signs


def test_the_slope_is_the_derivative_along_the_direction(lab):
    case, built = lab.case("vit_gpt"), lab.stirred(lab.built("vit_gpt"))
    x, y = case.x[:4], case.y[:4]
    found = lab.credit(built, "zeroth_order", x, y)
    for n in range(len(x)):
        exact = lab.gradients(built, "backprop", x[n : n + 1], y[n : n + 1], double=True)
        slope = sum((exact[k] * z).sum() for k, z in found.direction.items()) / len(x)
        assert float(found.slopes[n]) == pytest.approx(float(slope), rel=2e-3)


def test_the_estimate_is_right_on_average(lab):
    case, built = lab.case("mlp"), lab.stirred(lab.built("mlp"))
    exact = lab.gradients(built, "backprop", case.x, case.y)["head.bias"]
    rule = built.step
    total = torch.zeros(5)
    steps = 4000
    for step in range(1, steps + 1):
        z = signs(torch.tensor(float(step)), 0, torch.Size([5]))
        total += (z * exact).sum() * z / steps
    # E[z z^T] = 1; every entry's error has standard deviation |exact| / sqrt(steps).
    assert (total - exact).abs().max() < 4 * exact.norm() / steps**0.5
    assert rule.learner.sites


def test_signs_are_fair_and_unlike_from_step_to_step_and_place_to_place():
    count = 20_000
    drawn = torch.stack(
        [signs(torch.tensor(float(s)), 0, torch.Size([count])) for s in range(1, 9)]
    )
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    bound = 4.5 / count**0.5  # standard deviations of a mean of fair signs
    assert drawn.mean(1).abs().max() < bound
    between = drawn @ drawn.t() / count - torch.eye(8)
    assert between.abs().max() < bound
    for lag in (1, 2, 3, 7, 64):
        assert (drawn[:, lag:] * drawn[:, :-lag]).mean(1).abs().max() < bound
    again = signs(torch.tensor(3.0), 100, torch.Size([10, 10]))
    assert torch.equal(again.flatten(), drawn[2, 100:200])


def test_the_mixing_step_is_a_permutation_that_stays_within_64_bits():
    # h^5 is undone by h^d with 5 d = 1 mod p - 1.
    inverse = pow(5, -1, PRIME - 1)
    for h in (0, 1, 2, 12345, PRIME // 2, PRIME - 1):
        mixed = int(_permuted(torch.tensor(h)))
        assert mixed == pow(h, 5, PRIME)
        assert pow(mixed, inverse, PRIME) == h
    assert (PRIME - 1) ** 2 < 2**63


def test_without_a_step_number_is_an_error(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    with pytest.raises(ValueError, match="counted from 1"):
        RULES["zeroth_order"].credit(
            built.step.learner,
            built.frozen,
            built.adapter,
            Batch(x=case.x, y=case.y),
            torch.ones(24),
        )


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_the_graph_in_the_devices_engine_is_the_step(lab, name):
    case, built = lab.case(name), lab.stirred(lab.built(name, rule="zeroth_order"))
    x, y, w, rate = case.x[:5], case.y[:5], torch.ones(5), torch.tensor(0.1)
    engine = lab.engine(built, "train")
    assert "step" in engine.captured.inputs
    for number in (1.0, 7.0):
        step = torch.tensor(number)
        found = engine(
            {"x": x, "y": y, "w": w, "learning_rate": rate, "step": step}
            | {f"adapter/{k}": v for k, v in built.adapter.items()}
        )
        with torch.no_grad():
            _, _, adapter, _ = built.step.train(
                built.frozen, built.adapter, {}, x, y, w, rate, step
            )
        for key, value in adapter.items():
            moved, ours = (
                found[f"next/adapter/{key}"] - built.adapter[key],
                value - built.adapter[key],
            )
            assert torch.equal(moved.sign(), ours.sign()), key
            # Two losses of about 2 in float32, 1e-7 apart, are divided by 2e-3.
            assert float((moved - ours).abs().max()) < 0.1 * 1e-3, key


def test_private_steps_are_refused(lab):
    with pytest.raises(CompileError, match="private"):
        lab.config(rule="zeroth_order", privacy=PrivacyConfig())
