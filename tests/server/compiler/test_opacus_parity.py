"""Per-example gradients, norms and clipped sums against Opacus 1.6, for every kind of site.

Opacus differentiates the same adapters, written as ordinary torch modules, by hooks; we by the rule
``backprop``. What is clipped and how it is normed does not depend on the rule.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional as F

from rootlet_server.compiler.attention import separate_attention
from rootlet_server.compiler.learner import float_a
from rootlet_server.compiler.rules import RULES, Batch

BOUND = 0.3
# Rounding of float32 through the model, and the 1e-6 that Opacus adds to each norm.
TOLERANCE = 2e-5
KINDS = {
    "mlp": ("mlp", {}, "Linear on [N, C]"),
    "packed": ("vit_timm_class_token", {}, "Linear on tokens, packed attention projections"),
    "tokens": ("tokens", {}, "Linear on tokens after an embedding, padding masked out"),
    "vit_gpt": ("vit_gpt", {}, "Linear on tokens, mean pooling"),
    "mha": ("vit_mha", {}, "projections of nn.MultiheadAttention, taken apart"),
    "encoder": ("encoder", {}, "projections inside nn.TransformerEncoderLayer"),
    "queries": ("vit", {"attention": "local"}, "queries and keys"),
    "conv1d": ("conv1d", {}, "convolutions in one dimension, 1x1 and others, normed"),
    "residual_cnn": ("residual_cnn", {}, "convolutions in two dimensions, 1x1 and others"),
    "windows": ("windows", {}, "dilated, strided and same-padded convolutions"),
    "shared": ("shared", {}, "a layer that is called twice, and a head without bias"),
    "folded": ("folded", {}, "time folded into the batch"),
    "mlp, A": ("mlp", {"kind": "lora"}, "a trained A"),
    "vit_gpt, A": ("vit_gpt", {"kind": "lora"}, "a trained A on tokens"),
    "windows, A": ("windows", {"kind": "lora"}, "a trained A on patches"),
    "folded, A": ("folded", {"kind": "lora"}, "a trained A, time folded into the batch"),
}


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.dilated = nn.Conv2d(3, 6, 3, dilation=2)
        self.same = nn.Conv2d(6, 8, 3, padding="same", dilation=2)
        self.uneven = nn.Conv2d(8, 6, (1, 4), stride=(2, 1), padding=(0, 2))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.same(torch.tanh(self.dilated(x))))
        return self.head(F.relu(self.uneven(x)).mean((2, 3)))


class LowRank(nn.Module):
    """``W h + b + B (s A) h``; what learns is a layer of its own, so that Opacus finds it."""

    def __init__(self, base, scale, a, b, columns):
        super().__init__()
        self.base, self.columns, self.scale = base, columns, scale
        if isinstance(base, nn.Linear):
            self.a = nn.Linear(base.in_features, len(a), bias=False)
            self.b = nn.Linear(len(a), len(b), bias=False)
        else:
            layer = nn.Conv1d if base.weight.dim() == 3 else nn.Conv2d
            self.a = layer(
                base.in_channels, len(a), base.kernel_size, base.stride, base.padding,
                base.dilation, bias=False,
            )  # fmt: skip
            self.b = layer(len(a), len(b), 1, bias=False)
        for own, value in ((self.a, a), (self.b, b)):
            own.weight = nn.Parameter(value.reshape(own.weight.shape).clone())

    def forward(self, h):
        change = self.b(self.scale * self.a(h))
        if isinstance(self.base, nn.Linear):
            low, high = self.columns
            change = F.pad(change, (low, self.base.out_features - high))
        return self.base(h) + change


def peer(case, built):
    """The case's model with the same adapters, under Opacus; parameters by adapter name."""
    model, learner = copy.deepcopy(case.model).requires_grad_(False), built.step.learner
    separate_attention(model)
    for site in {site.module: site for site in learner.sites}.values():
        parent, _, name = site.module.rpartition(".")
        base = model.get_submodule(site.module)
        b = built.adapter[f"{site.module}.lora_B"]
        trained = built.adapter.get(f"{site.module}.lora_A")
        a = float_a(built.frozen, site.module).t() if trained is None else trained
        adapted = LowRank(base, learner.scale, a, b, site.columns)
        adapted.a.requires_grad_(trained is not None)
        setattr(model.get_submodule(parent), name, adapted)
    model.get_submodule(learner.head.module).requires_grad_(True)
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    for module in model.modules():  # Opacus looks at layers in training mode only
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            module.train()
    parameters, names = dict(model.named_parameters()), {"lora_A": "a.weight", "lora_B": "b.weight"}

    def place(key):
        module, _, last = key.rpartition(".")
        return f"{module}.{names.get(last, last)}"

    return wrapped, {key: parameters[place(key)] for key in built.adapter}


def built_for(lab, name):
    """The case and its build, away from its start."""
    zoo_name, options, _ = KINDS[name]
    if zoo_name == "windows":
        torch.manual_seed(0)
        case = replace(lab.case("mlp"), model=Windows().eval(), x=torch.randn(24, 3, 9, 12))
        return case, lab.stirred(lab.build(case, rule="backprop", **options))
    return lab.case(zoo_name), lab.stirred(lab.built(zoo_name, rule="backprop", **options))


@pytest.mark.parametrize("size", [5, 1])
@pytest.mark.parametrize("name", KINDS)
def test_parity(lab, name, size):
    case, built = built_for(lab, name)
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
    for p in parameters.values():  # Opacus sees each frame of a folded layer as an example
        p.grad_sample = p.grad_sample.reshape(size, -1, *p.shape).sum(1)
    samples = {key: p.grad_sample.reshape(size, -1) for key, p in parameters.items()}
    for key, sample in samples.items():
        ours = sum(part.per_example().reshape(size, -1) for part in credit.outers[key])
        assert sample.any(), key
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
