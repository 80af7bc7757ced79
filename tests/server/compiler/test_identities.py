"""Identities that hold for every model, in float32 and in int8."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler.int8 import quantize_weight, row_int8_matmul


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def outputs(built, x):
    with torch.no_grad():
        return built.step.learner.forward(built.frozen, built.adapter, x).output


def test_the_adapted_model_starts_as_the_model(lab, zoo_name):
    case = lab.case(zoo_name)
    with torch.no_grad():
        expected = case.model(case.x)
    # float32 sums in another order: a few units in the last place of the largest logit.
    atol = 8 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(outputs(lab.built(zoo_name), case.x), expected, rtol=0, atol=atol)


def test_an_int8_base_is_near_its_float_base(lab, zoo_name):
    case = lab.case(zoo_name)
    with torch.no_grad():
        expected = case.model(case.x)
    # Weights and activations are each off by at most 1/254 of their channel's or row's largest.
    assert relative(outputs(lab.built(zoo_name, base_dtype="int8"), case.x), expected) < 0.05


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_the_content_of_a_row_of_weight_zero_changes_nothing(lab, zoo_name, base_dtype):
    case = lab.case(zoo_name)
    built = lab.stirred(lab.built(zoo_name, base_dtype=base_dtype))
    w = torch.tensor([1.0, 1, 1, 0, 0, 0])
    x, y = case.x[:6], case.y[:6]
    other_x, other_y = torch.cat([x[:3], case.x[10:13]]), torch.cat([y[:3], (y[3:] + 1) % 5])
    rate = torch.tensor(0.1)
    with torch.no_grad():
        first, second = (
            built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
            for x, y in ((x, y), (other_x, other_y))
        )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for name, value in first[2].items():
        assert torch.equal(value, second[2][name]), name


def test_no_weight_at_all_is_a_step_of_zero(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    with torch.no_grad():
        loss, metric, adapter, _ = built.step.train(
            built.frozen, built.adapter, {}, case.x, case.y, torch.zeros(24), torch.tensor(1.0)
        )
    assert (loss.item(), metric.item()) == (0, 0)
    for name, value in adapter.items():
        assert torch.equal(value, built.adapter[name])


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_a_batch_is_a_weighted_set(lab, name, rule):
    case, built = lab.case(name), lab.stirred(lab.built(name))
    x, y = case.x[:5], case.y[:5]
    w = torch.tensor([1.0, 2, 1, 1, 1])
    reference = lab.gradients(built, rule, x, y, w, double=True)
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = lab.gradients(built, rule, x[order], y[order], w[order], double=True)
    twice = torch.tensor([0, 1, 1, 2, 3, 4])
    repeated = lab.gradients(built, rule, x[twice], y[twice], double=True)
    for key, value in reference.items():
        assert relative(permuted[key], value) < 1e-12
        assert relative(repeated[key], value) < 1e-12


def test_one_examples_outlier_leaves_the_others_as_they_were(lab, zoo_name):
    case = lab.case(zoo_name)
    built = lab.stirred(lab.built(zoo_name, base_dtype="int8"))
    changed = case.x.clone()
    changed[0] = 1e4 * changed[0] if changed.is_floating_point() else changed[0].flip(0) // 2
    before, after = outputs(built, case.x), outputs(built, changed)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_a_row_of_zeros_is_zero_in_int8():
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    weight, scale = quantize_weight(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), channel_dim=1)
    found = row_int8_matmul(x, weight, scale.flatten())
    assert torch.equal(found[0], torch.zeros(2))
    assert found.isfinite().all()
    assert found[1, 1] == 0  # a column of zeros too


def test_the_int8_product_by_hand():
    # Row (1, -2): scale 127 / 2, so q = round(63.5, -127) = (64, -127) to even. Column (127, 64).
    x, weight = torch.tensor([[1.0, -2.0]]), torch.tensor([[127], [64]], dtype=torch.int8)
    found = row_int8_matmul(x, weight, torch.tensor([0.5]))
    assert found.item() == pytest.approx((64 * 127 - 127 * 64) * 0.5 / 63.5, abs=1e-6)
    weight = torch.tensor([[100], [10]], dtype=torch.int8)
    found = row_int8_matmul(x, weight, torch.tensor([0.5]))
    assert found.item() == pytest.approx((6400 - 1270) * 0.5 / 63.5)


def test_int8_gradients_pass_straight_through():
    weight = torch.tensor([[100, -50], [10, 20]], dtype=torch.int8)
    scale = torch.tensor([0.5, 2.0])
    x = torch.tensor([[0.3, -2.0]], requires_grad=True)
    row_int8_matmul(x, weight, scale).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[50.0 - 100.0, 5.0 + 40.0]]))


def test_quantised_weights_are_within_half_a_step_and_symmetric():
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    q, scale = quantize_weight(weight, channel_dim=0)
    assert q.dtype == torch.int8
    assert q.abs().amax(dim=(1, 2, 3)).tolist() == [127] * 6
    assert ((q * scale - weight).abs() <= scale / 2 * (1 + 1e-5)).all()
