"""Feedback is the mean Jacobian, position weights say where it comes from, A is whitened."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rootlet_server.compiler import jacobians
from rootlet_server.compiler.adapters import whitened
from rootlet_server.compiler.feedback import positions_key
from rootlet_server.compiler.feedback_forms import feedback_matrix, form_keys


def stored_feedback(built, module):
    """(M, half a quantum of each row, position weights or None)."""
    site = next(s for s in built.step.learner.sites if s.module == module)
    _, scale_key, _ = form_keys(site.node)
    matrix = feedback_matrix(site.node, built.frozen, torch.float32)
    return matrix, built.frozen[scale_key] / 2, built.frozen.get(positions_key(site.node))


def assert_within_half_a_quantum(matrix, half, expected):
    assert ((matrix - expected).abs() <= half * 1.001).all()
    assert matrix.abs().max() > 10 * half.max()  # the comparison is not empty


def test_feedback_is_the_mean_jacobian(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    model = case.model
    after_first = F.leaky_relu(model.first(case.x))
    after_second = F.elu(model.second(after_first))

    def from_second(g):
        return model.head(model.norm(g))

    def from_first(g):
        return from_second(F.elu(model.second(g)))

    for module, tail, g in (
        ("first", from_first, after_first),
        ("second", from_second, after_second),
    ):
        jacobian = torch.func.vmap(torch.func.jacrev(tail))(g).mean(0).detach()
        matrix, half, positions = stored_feedback(built, module)
        assert positions is None
        assert_within_half_a_quantum(matrix, half, jacobian)


def test_the_feedback_of_a_convolution_sums_the_jacobian_over_positions(lab):
    case, built = lab.case("conv1d"), lab.built("conv1d")
    model = case.model.net
    g = model[:6](case.x)  # the 1x1 convolution, its batch norm and its tanh
    each = [torch.autograd.functional.jacobian(lambda g: model[6:](g[None])[0], row) for row in g]
    jacobian = torch.stack(each).mean(0)  # [K, C, P]
    matrix, half, positions = stored_feedback(built, "net.3")
    assert_within_half_a_quantum(matrix, half, jacobian.sum(2))
    total = jacobian.sum(2)
    expected = torch.einsum("kcp,kc->p", jacobian, total) / total.square().sum()
    torch.testing.assert_close(positions, expected, rtol=1e-4, atol=1e-5)


def test_position_weights_sum_to_one(lab, zoo_name):
    built = lab.built(zoo_name)
    for site in built.step.learner.sites:
        positions = built.frozen.get(positions_key(site.node))
        assert (positions is None) == (site.positions == 1)
        if positions is not None:
            assert positions.shape == (site.positions,)
            assert positions.sum().item() == pytest.approx(1, abs=1e-5)


def test_mean_pooling_weighs_positions_evenly(lab):
    _, _, positions = stored_feedback(lab.built("uint8_cnn"), "mix")
    torch.testing.assert_close(positions, torch.full((36,), 1 / 36))


def test_a_class_token_takes_all_the_weight(lab):
    built = lab.built("vit_timm_class_token")
    for module in ("block.up", "block.down", "block.attention.proj"):
        _, _, positions = stored_feedback(built, module)
        torch.testing.assert_close(positions, torch.eye(5)[0])
    _, _, positions = stored_feedback(built, "block.attention.qkv")
    assert (positions[1:] > 0).all()  # values reach the class token from everywhere


def test_a_site_that_the_output_ignores_gets_no_feedback(lab):
    class Ignored(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = x.unsqueeze(1).expand(-1, 3, -1)
            nothing = self.unused(x)[..., :0].sum(-1, keepdim=True)
            return self.head((self.used(x) + nothing).mean(1))

    case = replace(lab.case("mlp"), model=Ignored(), x=torch.randn(8, 4))
    matrix, _, positions = stored_feedback(lab.build(case), "unused")
    assert not matrix.any()
    torch.testing.assert_close(positions, torch.full((3,), 1 / 3))


def test_random_feedback_is_seeded_and_even(lab):
    case = lab.case("uint8_cnn")
    first, again, other = (
        stored_feedback(lab.build(case, feedback="random", seed=seed), "mix") for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    torch.testing.assert_close(first[2], torch.full((36,), 1 / 36))


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_whitening(rank):
    torch.manual_seed(0)
    h = torch.randn(500, 20, dtype=torch.float64) @ torch.diag(torch.logspace(1, -2, 20).double())
    a = whitened(h.t() @ h, rank).double()
    assert a.shape == (20, min(rank, 20))
    # A h has the mean square of h.
    assert (h @ a).square().mean().item() == pytest.approx(h.square().mean().item(), rel=1e-6)
    # Its directions are orthogonal, and they are the leading right singular vectors of H.
    gram = a.t() @ a
    assert (gram - gram.diag().diag()).norm() < 1e-6 * gram.norm()
    _, s, vt = torch.linalg.svd(h, full_matrices=False)
    cosines = (vt[: a.shape[1]] @ a).diag().abs() / a.norm(dim=0)
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6)
    # Direction k is divided by S_k + S_1 / 10.
    expected = 1 / (s + 0.1 * s[0])[: a.shape[1]]
    ratio = a.norm(dim=0) / expected
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-5, atol=0)


def test_whitening_of_inputs_that_are_all_zero_is_finite():
    assert not whitened(torch.zeros(4, 4, dtype=torch.float64), 2).any()


def test_calibrated_a_keeps_the_mean_square_of_a_sites_inputs(lab):
    case, built = lab.case("conv1d"), lab.built("conv1d")
    inputs = {"net.3": case.model.net[:3](case.x).transpose(1, 2)}
    inputs["net.8"] = case.model.net[:8](case.x)
    for module, h in inputs.items():
        a = built.frozen[f"{module}.lora_A:linear"]
        expected = h.square().mean().item()
        assert (h @ a).square().mean().item() == pytest.approx(expected, rel=1e-4)


def test_a_trained_a_starts_at_random_with_b_at_zero(lab):
    built = lab.build(lab.case("mlp"), kind="lora")
    a = built.adapter["first.lora_A"]
    assert a.shape == (4, 12)
    assert 0.5 / 12 < a.square().mean().item() < 2 / 12
    assert not built.adapter["first.lora_B"].any()


def test_the_rank_is_bounded_by_the_inputs(lab):
    built = lab.build(lab.case("mlp"), rank=16)
    assert built.adapter["first.lora_B"].shape == (24, 12)
    assert built.adapter["second.lora_B"].shape == (16, 16)


def test_a_wide_head_is_calibrated_on_the_first_examples_alone(lab, monkeypatch):
    """The mean over the features of many examples would take a backward pass for each feature."""
    case = lab.case("mlp")
    monkeypatch.setattr(jacobians, "CHUNK", 4)
    monkeypatch.setattr(jacobians, "PASSES", 1)
    few = lab.build(replace(case, x=case.x[:4]), feedback="calibrated_features", kind="lora")
    many = lab.build(case, feedback="calibrated_features", kind="lora")
    keys = [key for key in few.frozen if ":feedback." in key]
    assert keys
    for key in keys:
        assert torch.equal(few.frozen[key], many.frozen[key])
