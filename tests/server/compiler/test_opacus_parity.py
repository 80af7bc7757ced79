"""Per-example gradients, norms and clipped sums against Opacus 1.6, for every kind of site.

Opacus differentiates the same adapters, written as ordinary torch modules, by hooks; we by the rule
``backprop``. What is clipped and how it is normed does not depend on the rule.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional as F

from rootlet_server.compiler.learner import float_a
from rootlet_server.compiler.rules import RULES, Batch

BOUND = 0.3
# Rounding of float32 through the model, and the 1e-6 that Opacus adds to each norm.
TOLERANCE = 2e-5
KINDS = {
    "mlp": "Linear on [N, C]",
    "vit_timm_class_token": "Linear on tokens, packed attention projections",
    "vit_gpt": "Linear on tokens, mean pooling",
    "conv1d": "convolutions in one dimension, 1x1 and others, normed",
    "residual_cnn": "convolutions in two dimensions, 1x1 and others",
    "shared": "a layer that is called twice, and a head without bias",
}


class LowRank(nn.Module):
    """``W h + b + B (s A) h``; B is a layer of its own, so that Opacus finds it."""

    def __init__(self, base, scaled_a, b, columns):
        super().__init__()
        self.base, self.columns = base, columns
        self.conv = not isinstance(base, nn.Linear)
        if self.conv:
            layer = nn.Conv1d if base.weight.dim() == 3 else nn.Conv2d
            self.b = layer(len(scaled_a), len(b), 1, bias=False)
            scaled_a = scaled_a.reshape(len(scaled_a), *base.weight.shape[1:])
        else:
            self.b = nn.Linear(len(scaled_a), len(b), bias=False)
        self.register_buffer("a", scaled_a)
        self.b.weight = nn.Parameter(b.reshape(self.b.weight.shape).clone())

    def forward(self, h):
        if self.conv:
            apply = F.conv1d if self.a.dim() == 3 else F.conv2d
            base = self.base
            return base(h) + self.b(
                apply(h, self.a, stride=base.stride, padding=base.padding, dilation=base.dilation)
            )
        low, high = self.columns
        change = F.pad(self.b(F.linear(h, self.a)), (low, self.base.out_features - high))
        return self.base(h) + change


def peer(case, built):
    """The case's model with the same adapters, under Opacus; parameters by adapter name."""
    model, learner = case.model.requires_grad_(False), built.step.learner
    for site in {site.module: site for site in learner.sites}.values():
        parent, _, name = site.module.rpartition(".")
        base = model.get_submodule(site.module)
        a = learner.scale * float_a(built.frozen, site.module).t()
        b = built.adapter[f"{site.module}.lora_B"]
        adapted = LowRank(base, a.contiguous(), b, site.columns)
        setattr(model.get_submodule(parent), name, adapted)
    model.get_submodule(learner.head.module).requires_grad_(True)
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    for module in model.modules():  # Opacus looks at layers in training mode only
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            module.train()
    parameters = dict(model.named_parameters())
    return wrapped, {
        key: parameters[key.removesuffix("lora_B") + "b.weight" if key.endswith("lora_B") else key]
        for key in built.adapter
    }


@pytest.mark.parametrize("size", [5, 1])
@pytest.mark.parametrize("name", KINDS)
def test_parity(lab, name, size):
    case = lab.case(name)
    built = lab.stirred(lab.built(name, rule="backprop"))
    x, y = case.x[:size], case.y[:size]
    wrapped, parameters = peer(case, built)
    with warnings.catch_warnings():  # torch: a hook on a layer whose input needs no gradient
        warnings.simplefilter("ignore")
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()

    with torch.no_grad():
        batch, step = Batch(x=x, y=y), built.step
        credit = RULES["backprop"].credit(
            step.learner, built.frozen, built.adapter, batch, torch.ones(size)
        )
        *_, found = step.gradients(
            built.frozen, built.adapter, x, y, torch.ones(size), torch.tensor(BOUND)
        )
    samples = {key: p.grad_sample.reshape(size, -1) for key, p in parameters.items()}
    for key, sample in samples.items():
        ours = sum(part.per_example().reshape(size, -1) for part in credit.outers[key])
        assert close(ours, sample), key
    norms = torch.cat(list(samples.values()), 1).norm(dim=1)
    assert close(credit.squared_norms().sqrt(), norms)
    assert norms.max() > BOUND

    optimizer = DPOptimizer(
        torch.optim.SGD(list(parameters.values()), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
        expected_batch_size=size,
    )
    optimizer.clip_and_accumulate()
    for key, p in parameters.items():
        assert close(found[key], p.summed_grad.reshape(found[key].shape)), key


def close(found, expected):
    return (found - expected).norm() <= TOLERANCE * expected.norm().clamp_min(1e-6)


def test_an_empty_sample_has_the_sum_zero(lab):
    case, built = lab.case("vit_gpt"), lab.built("vit_gpt")
    with torch.no_grad():
        *sums, found = built.step.gradients(
            built.frozen,
            built.adapter,
            case.x[:2],
            case.y[:2],
            torch.zeros(2),
            torch.tensor(BOUND),
        )
    assert [float(value) for value in sums] == [0, 0, 0]
    assert all(not value.any() for value in found.values())
