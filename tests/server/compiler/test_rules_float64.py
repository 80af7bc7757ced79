"""In float64: backprop is autograd on a plain module, DFA with the head's weight is backprop, and
f' is the derivative that autograd gives.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def merged(model, built, adapter):
    """The model's parameters with ``s B A`` added to each adapted weight."""
    parameters = {k: v.detach() for k, v in model.named_parameters()}
    learner = built.step.learner
    for site in {s.module: s for s in learner.sites}.values():
        a = built.frozen[f"{site.module}.lora_A:linear"].double().t()
        change = learner.scale * adapter[f"{site.module}.lora_B"] @ a
        name, first = f"{site.module}.weight", site.columns[0]
        if name not in parameters:  # torch's packed attention: rows [2d, 3d) are the values
            parent, _, last = site.module.rpartition(".")
            packed = last == "v_proj"
            name = f"{parent}.in_proj_weight" if packed else name
            first = 2 * len(change) if packed else first
        weight = parameters[name]
        rows = F.pad(change, (0, 0, first, len(weight) - first - len(change)))
        parameters[name] = weight + rows.reshape(weight.shape)
    head = learner.head.module
    parameters |= {k: v for k, v in adapter.items() if k.startswith(f"{head}.")}
    return parameters


def test_backprop_is_autograd_on_the_plain_module(lab, zoo_name):
    case = lab.case(zoo_name)
    built = lab.stirred(lab.built(zoo_name))
    found = lab.gradients(built, "backprop", case.x, case.y, double=True)

    model = copy.deepcopy(case.model).double()
    x = case.x.double() if case.x.is_floating_point() else case.x
    adapter = {k: v.double().requires_grad_() for k, v in built.adapter.items()}
    output = torch.func.functional_call(model, merged(model, built, adapter), (x,))
    F.cross_entropy(output, case.y).backward()
    assert found.keys() == adapter.keys()
    for name, value in adapter.items():
        assert relative(found[name], value.grad) < 1e-12, name


class HandWrittenSwish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class HandWrittenGelu(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu_inplace": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(0.2),
    "prelu": nn.PReLU(),
    "prelu_per_channel": nn.PReLU(8, init=0.1),
    "elu": nn.ELU(0.7),
    "celu": nn.CELU(1.3),
    "selu": nn.SELU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "gelu_by_hand": HandWrittenGelu(),
    "silu": nn.SiLU(),
    "swish_by_hand": HandWrittenSwish(),
    "mish": nn.Mish(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "log_sigmoid": nn.LogSigmoid(),
    "softplus": nn.Softplus(beta=2),
    "softsign": nn.Softsign(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "none": nn.Identity(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_hidden_layer_with_the_heads_weight_as_feedback_is_backprop(lab, name):
    # torch's own kernel for the derivative of hardsigmoid holds 1/6 in float32.
    tolerance = 2**-24 if name == "hardsigmoid" else 1e-12
    torch.manual_seed(0)
    activation = ACTIVATIONS[name]
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 5))
    case = replace(lab.case("mlp"), model=model, x=2 * torch.randn(16, 6), y=torch.arange(16) % 5)
    built = lab.stirred(lab.build(case, kind="lora"))
    (site,) = built.step.learner.sites
    frozen = {
        **built.frozen,
        f"{site.node}:feedback.q": built.adapter["2.weight"].double(),
        f"{site.node}:feedback.scale": torch.ones(5, 1),
    }
    built = replace(built, frozen=frozen)
    dfa, backprop = (
        lab.gradients(built, rule, case.x, case.y, double=True) for rule in ("dfa", "backprop")
    )
    assert dfa.keys() == {"0.lora_A", "0.lora_B", "2.weight", "2.bias"}
    for key, value in backprop.items():
        assert relative(dfa[key], value) < tolerance, key

    a = torch.linspace(-4, 4, 800, dtype=torch.float64).reshape(100, 8).requires_grad_()
    (expected,) = torch.autograd.grad(copy.deepcopy(activation).double()(a.clone()).sum(), a)
    slope = site.chain.derivative({k: v.double() for k, v in frozen.items()}, a.detach())
    if slope is None:
        slope = torch.ones_like(a)
    torch.testing.assert_close(slope, expected, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize(
    "tail",
    [
        (nn.BatchNorm2d(6), nn.ReLU6()),
        (nn.BatchNorm2d(6), nn.SiLU()),
        (nn.BatchNorm2d(6), nn.PReLU(6)),
        (nn.Tanh(), nn.BatchNorm2d(6)),
        (nn.BatchNorm2d(6, affine=False), nn.Identity()),
    ],
    ids=lambda tail: "-".join(type(m).__name__ for m in tail),
)
def test_the_slope_of_a_batch_norm_with_an_activation(lab, tail):
    torch.manual_seed(0)
    tail = nn.Sequential(*tail)
    for norm in tail:
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    ).eval()
    case = replace(lab.case("mlp"), model=model, x=torch.randn(8, 3, 4, 4))
    built = lab.build(case)
    (site,) = built.step.learner.sites
    a = torch.randn(7, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(copy.deepcopy(tail).double()(a).sum(), a)
    slope = site.chain.derivative({k: v.double() for k, v in built.frozen.items()}, a.detach())
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
