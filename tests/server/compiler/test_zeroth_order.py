"""Zeroth order: the slope along a direction that is a function of the step alone."""

from __future__ import annotations

from dataclasses import replace

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


def chi_square_of_the_mean(step, frozen, adapter, case, exact, change, steps=300):
    """``sum_i ((mean_i - exact_i) / (deviation_i / sqrt(steps)))^2`` by entry, over all entries.

    For an unbiased estimate each term has mean one, whatever its variance; entries share the
    direction's sign with themselves alone, so that terms are nearly independent.
    """
    found = []
    for number in range(1, steps + 1):
        batch = Batch(x=case.x, y=case.y, step=torch.tensor(float(number)))
        weights = torch.full((len(case.x),), 1 / len(case.x))
        credit = RULES["zeroth_order"].credit(step.learner, frozen, adapter, batch, weights)
        found.append(change(credit.total()["head.weight"]).flatten())
    drawn = torch.stack(found).double()
    z = (drawn.mean(0) - exact.flatten()) / (drawn.std(0) / steps**0.5)
    return float(z.square().mean()), z.numel()


@pytest.mark.parametrize(("bias", "unbiased"), [(None, True), ("shrunk", False), ("turned", False)])
def test_the_rules_own_estimate_is_right_on_average(lab, bias, unbiased):
    """The rule over 300 steps against backprop; shrunk by a half or turned it must be noticed."""
    case, built = lab.case("mlp"), lab.stirred(lab.built("mlp"))
    small = replace(case, x=case.x[:4], y=case.y[:4])
    exact = lab.gradients(built, "backprop", small.x, small.y)["head.weight"].double()
    change = {
        None: lambda g: g, "shrunk": lambda g: g / 2, "turned": lambda g: g.roll(1, 0)
    }[bias]  # fmt: skip
    with torch.no_grad():
        mean, count = chi_square_of_the_mean(
            built.step, built.frozen, built.adapter, small, exact, change
        )
    # A mean of squares of nearly normal numbers: 1 with a standard deviation of sqrt(2 / count).
    bound = 1 + 4 * (2 / count) ** 0.5
    assert (mean < bound) == unbiased, (mean, bound)


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
