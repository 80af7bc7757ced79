"""Training rounds on the grids on which a bundle rounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rootlet_server.compiler import CompileConfig, LoraConfig, build
from rootlet_server.compiler.int4 import int4_weight, quantize_int4
from rootlet_server.compiler.int8 import quantize_weight, row_int8_matmul
from rootlet_server.training import FullTrainingConfig, train
from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.quantisers import (
    LearnedGrid,
    RangeGrid,
    RangeRounder,
    RowRounder,
    add_quantisers,
    remove_quantisers,
)


def test_a_rounded_layer_computes_what_the_int8_base_computes():
    torch.manual_seed(0)
    weight, x = torch.randn(7, 12), torch.randn(5, 12)
    q, scale = quantize_weight(weight.t().contiguous(), channel_dim=1)
    expected = row_int8_matmul(x, q, scale.flatten())
    found = RowRounder()(x) @ RangeGrid(8)(weight).t()
    # Integers times scales on both sides; only the order of two float32 products differs.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_learned_int4_steps_are_stored_as_they_are():
    torch.manual_seed(0)
    grid = LearnedGrid(torch.randn(3, 64), 4)
    weight = torch.randn(3, 64)
    weight[:, ::32] = 10.0  # every block reaches the end of its grid, as a trained one would
    rounded = grid(weight).detach()
    stored = int4_weight(*quantize_int4(rounded.t().contiguous()))
    torch.testing.assert_close(stored.t(), rounded, rtol=1e-6, atol=1e-6)


def test_the_gradients_of_lsq_are_by_hand():
    grid = LearnedGrid(torch.ones(1, 3), 8)
    grid.step.data.fill_(0.5)
    weight = torch.tensor([[0.6, -0.9, 100.0]], requires_grad=True)  # 1.2, -1.8, beyond 127 steps
    rounded = grid(weight)
    torch.testing.assert_close(rounded, torch.tensor([[0.5, -1.0, 63.5]]))
    rounded.sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0, 1.0, 0.0]]))
    by_step = (-0.2 - 0.2 + 127) / (3 * 127) ** 0.5
    torch.testing.assert_close(grid.step.grad, torch.tensor([[by_step]]))


def test_qats_gradient_passes_straight_through():
    weight = torch.tensor([[0.3, -1.0]], requires_grad=True)
    (RangeGrid(8)(weight) * torch.tensor([[2.0, 3.0]])).sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[2.0, 3.0]]))


def test_a_running_range_holds_zero_and_stays_in_eval_mode():
    rounder = RangeRounder()
    rounder(torch.tensor([1.0, 3.0]))
    assert (float(rounder.low), float(rounder.high)) == (0.0, 3.0)
    rounder.eval()
    assert float(rounder(torch.tensor(9.0))) == pytest.approx(3.0)
    assert float(rounder.high) == 3.0


def test_they_come_out_without_a_trace():
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    config = FullTrainingConfig(quantiser="qat")
    add_quantisers(model, config)
    assert isinstance(model[0].activation_rounder, RangeRounder)
    assert not hasattr(model[3], "activation_rounder")  # the head learns on devices, in float
    remove_quantisers(model, config)
    assert model.state_dict().keys() == before.keys()
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    assert all(not module._forward_pre_hooks for module in model)


@pytest.mark.parametrize(("quantiser", "bits"), [("qat", 8), ("lsq", 8), ("lsq", 4)])
def test_what_was_measured_in_training_is_what_the_bundles_base_computes(quantiser, bits, nets):
    data = nets.digits()
    case = {"training": {"quantiser": quantiser, "weight_bits": bits}, "optimizer": {"name": "adam",
            "learning_rate": 3e-3}}  # fmt: skip
    trained = train(nets.residual(width=32), data, nets.config(**case))
    config = CompileConfig(
        base_dtype="int8" if bits == 8 else "int4", adapter=LoraConfig(rank=4), rule="backprop"
    )
    built = build(trained.model, data.train.x[:32], config)
    x, y = data.held_out.x, data.held_out.y
    _, right, _ = built.step.evaluate(built.frozen, built.adapter, x, y, torch.ones(len(y)))
    # Rounding to nearest can fall the other way in an example at a border: two of 200.
    assert abs(float(right) / len(y) - trained.metric) <= 0.01


def test_a_model_that_is_only_a_head_has_nothing_to_round(nets):
    with pytest.raises(FullTrainingConfigError, match="no layer but the head"):
        train(nn.Linear(64, 10), nets.digits(), nets.config(training={"quantiser": "qat"}))
