"""Per-example gradients in factors: their sum is the batch's gradient, and each is the gradient of
a batch that holds that example alone.
"""

from __future__ import annotations

import pytest
import torch

RULES = (
    "dfa",
    "dfa_blocks",
    "backprop",
    "backprop_checkpointed",
    "head_only",
    "local_losses",
    "zeroth_order",
)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("rule", RULES)
def test_factors_add_up_to_the_gradient_of_the_batch(lab, zoo_name, rule):
    case, built = lab.case(zoo_name), lab.stirred(lab.built(zoo_name, rule=rule))
    x, y, w = case.x[:5], case.y[:5], torch.tensor([1.0, 0, 2, 1, 1])
    expected = lab.gradients(built, rule, x, y, w, double=True)
    found = lab.credit(built, rule, x, y, w).total()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-12, name


@pytest.mark.parametrize("rule", RULES)
def test_norms_are_those_of_batches_of_one(lab, zoo_name, rule):
    case, built = lab.case(zoo_name), lab.stirred(lab.built(zoo_name, rule=rule))
    x, y = case.x[:4], case.y[:4]
    found = lab.credit(built, rule, x, y).squared_norms() * len(x) ** 2
    for n in range(len(x)):
        alone = lab.gradients(built, rule, x[n : n + 1], y[n : n + 1], double=True)
        expected = sum(value.square().sum() for value in alone.values())
        assert relative(found[n], expected) < 1e-10


def test_factors_multiply_examples(lab):
    case, built = lab.case("vit_gpt"), lab.stirred(lab.built("vit_gpt"))
    x, y, factors = case.x[:3], case.y[:3], torch.tensor([0.5, 0.0, 3.0])
    expected = lab.gradients(built, "dfa", x, y, factors, double=True)
    found = lab.credit(built, "dfa", x, y).total(factors.double() * 3 / factors.sum())
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-12, name
