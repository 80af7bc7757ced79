"""Local losses: every site learns from its own head, exactly, and from nothing else."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler.local_heads import local_head_names, pooled, ridge
from rootlet_server.compiler.losses import loss_terms


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_each_site_gets_the_gradient_of_its_own_loss(lab, name):
    case = lab.case(name)
    built = lab.stirred(lab.built(name, rule="local_losses"))
    found = lab.gradients(built, "local_losses", case.x, case.y, double=True)
    learner = built.step.learner.in_float64()
    frozen = {k: v.double() if v.is_floating_point() else v for k, v in built.frozen.items()}
    adapter = {k: v.double() for k, v in built.adapter.items()}
    for site in learner.sites:
        weight, bias = local_head_names(site)

        def own_loss(trainable, site=site, weight=weight, bias=bias):
            forward = learner.forward(frozen, trainable, case.x.double(), keep={site.chain.point})
            output = pooled(site, forward.kept[site.chain.point]) @ trainable[weight].t()
            return loss_terms(learner.task, output + trainable[bias], case.y).loss.mean()

        expected = torch.func.grad(own_loss)(adapter)
        for key in (f"{site.module}.lora_B", weight, bias):
            assert relative(found[key], expected[key]) < 1e-10, key
    backprop = lab.gradients(built, "backprop", case.x, case.y, double=True)
    assert relative(found["head.weight"], backprop["head.weight"]) < 1e-12


def test_heads_start_at_what_the_base_says(lab):
    case, built = lab.case("mlp"), lab.built("mlp", rule="local_losses")
    learner, site = built.step.learner, built.step.learner.sites[-1]
    weight, bias = local_head_names(site)
    with torch.no_grad():
        forward = learner.forward(built.frozen, built.adapter, case.x, keep={site.chain.point})
        found = pooled(site, forward.kept[site.chain.point]) @ built.adapter[weight].t()
        found = found + built.adapter[bias]
    left = (found - forward.output).square().sum()
    assert left < 0.2 * (forward.output - forward.output.mean(0)).square().sum()


def test_ridge_finds_a_linear_map():
    torch.manual_seed(0)
    f, v = torch.randn(500, 6), torch.randn(3, 6)
    found, bias = ridge(f, f @ v.t() + 2)
    torch.testing.assert_close(found, v, rtol=0.02, atol=0.02)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_the_graph_in_the_devices_engine_is_the_step(lab, name):
    case, built = lab.case(name), lab.stirred(lab.built(name, rule="local_losses"))
    x, y, w, rate = case.x[:5], case.y[:5], torch.ones(5), torch.tensor(0.1)
    found = lab.engine(built, "train")(
        {"x": x, "y": y, "w": w, "learning_rate": rate}
        | {f"adapter/{k}": v for k, v in built.adapter.items()}
    )
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
    for key, value in adapter.items():
        assert relative(found[f"next/adapter/{key}"], value) < 1e-5, key
