"""Adapters on k x k convolutions: patches against torch's unfold, gradients against autograd.

Shape legend: N examples, C channels, P positions, r rank.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

CONVOLUTIONS = {
    "3x3": nn.Conv2d(3, 6, 3, padding=1),
    "strided": nn.Conv2d(3, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(3, 6, 3, dilation=2),
    "uneven": nn.Conv2d(3, 6, (1, 4), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "same": nn.Conv2d(3, 6, 4, padding="same"),
    "strided_1x1": nn.Conv2d(3, 6, 1, stride=2),
    "one_dimension": nn.Conv1d(3, 6, 5, stride=2, padding=2),
}


def case_of(lab, name):
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]
    pool = nn.AdaptiveAvgPool1d(1) if conv.weight.dim() == 3 else nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(6, 5))
    shape = (12, 3, 9) if conv.weight.dim() == 3 else (12, 3, 7, 9)
    return replace(lab.case("mlp"), model=model, x=torch.randn(shape), y=torch.arange(12) % 5)


@pytest.fixture(scope="module")
def built(lab):
    """A build by name of the convolution and kind of adapter, away from its start."""
    cache = {}

    def get(name, kind):
        if (name, kind) not in cache:
            cache[name, kind] = lab.stirred(lab.build(case_of(lab, name), kind=kind))
        return cache[name, kind]

    return get


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_convolution_is_the_product_of_its_flat_weight_and_the_patches(lab, built, name):
    case, conv = case_of(lab, name), CONVOLUTIONS[name]
    (site,) = built(name, "calibrated").step.learner.sites
    h = case.x.double()
    weight = conv.weight.detach().double().flatten(1)
    expected = F.conv2d if conv.weight.dim() == 4 else F.conv1d
    expected = expected(
        h, conv.weight.detach().double(), None, conv.stride, conv.padding, conv.dilation
    )
    by_patches = torch.einsum("oi,ni...->no...", weight, site.inputs(h))
    torch.testing.assert_close(by_patches, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(site.window.project(h, weight.t()), expected, rtol=1e-12, atol=1e-12)


def test_patches_are_torchs_unfold(lab, built):
    case = case_of(lab, "strided")
    (site,) = built("strided", "calibrated").step.learner.sites
    expected = F.unfold(case.x, 3, stride=2, padding=1)
    torch.testing.assert_close(site.inputs(case.x).flatten(2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["calibrated", "lora"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_gradients_are_autograds(lab, built, name, kind):
    """Of the module with ``s B A`` added to its weight; one hidden layer, so DFA is next to it."""
    case, step = case_of(lab, name), built(name, kind)
    learner = step.step.learner
    found = lab.gradients(step, "backprop", case.x, case.y, double=True)
    adapter = {k: v.double().requires_grad_() for k, v in step.adapter.items()}
    a = adapter.get("0.lora_A")
    a = step.frozen["0.lora_A:linear"].double().t() if a is None else a
    model = case.model.double()
    change = (learner.scale * adapter["0.lora_B"] @ a).reshape(model[0].weight.shape)
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    parameters["0.weight"] = parameters["0.weight"] + change
    parameters |= {k: adapter[k] for k in ("4.weight", "4.bias")}
    output = torch.func.functional_call(model, parameters, (case.x.double(),))
    F.cross_entropy(output, case.y).backward()
    model.float()
    assert found.keys() == adapter.keys()
    for key, value in adapter.items():
        torch.testing.assert_close(found[key], value.grad, rtol=1e-11, atol=1e-13)
    dfa = lab.gradients(step, "dfa", case.x, case.y, double=True)
    per_example = lab.credit(step, "backprop", case.x, case.y).total()
    for key, value in found.items():
        assert torch.cosine_similarity(dfa[key].flatten(), value.flatten(), dim=0) > 0.9, key
        torch.testing.assert_close(per_example[key], value, rtol=1e-11, atol=1e-13)


def test_a_frozen_a_keeps_no_patches(built, lab):
    case, step = case_of(lab, "3x3"), built("3x3", "calibrated")
    learner = step.step.learner
    with torch.no_grad():
        (tap,) = learner.forward(step.frozen, step.adapter, case.x).taps.values()
    assert tap.inputs is None
    assert tap.projected.shape == (12, 63, 4)


def test_a_depthwise_convolution_is_left_out_with_its_reason(lab):
    built = lab.built("residual_cnn")
    assert list(built.left_out) == ["depthwise"]
    assert "depthwise" in built.left_out["depthwise"]
    assert built.step.learner.sites[0].module == "stem"
