"""int8 convolutions, int4 weights, int8 derivatives: by hand, against autograd, in the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from rootlet_runtime.engines.onnx import AS_WRITTEN
from rootlet_server.compiler import CompileConfig, CompileError, build
from rootlet_server.compiler.config import MixedConfig
from rootlet_server.compiler.conv_int8 import static_int8_conv
from rootlet_server.compiler.conv_ranges import HEADROOM, ConvRanges, stored_ranges
from rootlet_server.compiler.int4 import BLOCK, int4_weight, quantize_int4
from rootlet_server.compiler.int8 import quantize_weight, row_int8_matmul


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def conv_tensors(weight, bias, inputs, outputs):
    q, scale = quantize_weight(weight, channel_dim=0)
    stored = {"w:conv.q": q, "w:conv.scale": scale}
    return stored | stored_ranges("w", scale, ConvRanges(inputs, outputs), bias)


def test_an_int8_convolution_by_hand():
    # Inputs in [0, 255 / 1.1] make a step of one and a zero point of 0; outputs a step of 2, so
    # that 10 * 3 - 20 * 1 + 3 = 13 falls on 6.5, and half to even makes it 6: 12.
    weight = torch.tensor([[[3.0, -1.0]]]) * 127 / 3
    end = 255 / HEADROOM
    stored = conv_tensors(weight, None, (0.0, end), (0.0, 2 * end))
    stored |= {"w:conv.q": torch.tensor([[[3, -1]]], dtype=torch.int8)}
    stored |= {"w:conv.bias": torch.tensor([3], dtype=torch.int32)}
    stored |= {"w:conv.bias_scale": torch.ones(1)}
    x = torch.tensor([[[10.0, 20.0, 250.4, 300.0]]])
    found = static_int8_conv(stored, "w", x, ([1], [0], [1], 1))
    # 250.4 becomes 250, and 300 is clipped to 255: 20 * 3 - 250 + 3 < 0; 750 - 255 + 3 = 498.
    torch.testing.assert_close(found, torch.tensor([[[12.0, 0.0, 498.0]]]))


@pytest.mark.parametrize("geometry", [([1, 1], [1, 1], [1, 1], 1), ([2, 1], [0, 1], [1, 2], 1)])
def test_an_int8_convolution_is_near_the_float_one_and_passes_gradients_straight(geometry):
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 16, 3, 3).double() / 12, torch.randn(24).double()
    x = torch.randn(4, 16, 9, 9).double().requires_grad_()
    expected = torch.nn.functional.conv2d(x, weight, bias, *geometry)
    known = (x.detach(), expected.detach())
    inputs, outputs = ((float(t.min()), float(t.max())) for t in known)
    stored = conv_tensors(weight, bias, inputs, outputs)
    found = static_int8_conv(stored, "w", x, geometry)
    # Of normal values within 4.2 deviations, a step is 1.1 * 8.4 / 255 and off by its root twelfth,
    # 1 %, before and after; a weight's step is 3.5 / 127, off by 0.8 %: 1.7 % together.
    assert relative(found.detach(), expected.detach()) < 0.02
    kernel = stored["w:conv.q"].double() * stored["w:conv.scale"]
    grad = torch.randn_like(expected)
    (exact,) = torch.autograd.grad(torch.nn.functional.conv2d(x, kernel, None, *geometry), x, grad)
    (straight,) = torch.autograd.grad(found, x, grad)
    torch.testing.assert_close(straight, exact)


def test_an_int8_derivative_is_the_product_with_the_rounded_gradient():
    torch.manual_seed(0)
    q, scale = quantize_weight(torch.randn(24, 40).double(), channel_dim=1)
    x = torch.randn(8, 24).double().requires_grad_()
    grad = torch.randn(8, 40).double()
    both = row_int8_matmul(x, q, scale.flatten(), both_ways=True)
    one = row_int8_matmul(x, q, scale.flatten())
    assert torch.equal(both, one)
    (rounded,) = torch.autograd.grad(both, x, grad)
    (exact,) = torch.autograd.grad(one, x, grad)
    scaled = grad * scale.flatten()
    step = scaled.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(rounded, (scaled / step).round() * step @ q.double().t())
    assert 0 < relative(rounded, exact) < 0.01


def test_int4_weights_are_packed_low_half_first_and_within_a_step():
    weight = torch.zeros(BLOCK, 2)
    weight[0, 0], weight[0, 1], weight[1, 0] = -7.0, 7.0, 3.0
    packed, scale = quantize_int4(weight)
    assert torch.equal(scale, torch.ones(1, 2))
    assert packed[0].item() == (-7 & 15) | 7 << 4
    assert packed[1].item() == 3
    assert torch.equal(int4_weight(packed, scale), weight)
    torch.manual_seed(0)
    weight = torch.randn(4 * BLOCK, 10)
    found = int4_weight(*quantize_int4(weight))
    largest = weight.view(4, BLOCK, 10).abs().amax(1, keepdim=True) / 7
    plain = ((weight.view(4, BLOCK, 10) / largest).round() * largest).flatten(0, 1)
    assert (found - weight).square().mean() <= (plain - weight).square().mean()
    assert relative(found, weight) < 0.1


class Wide(nn.Module):
    """A few-channelled stem, an int8 3x3 convolution, two 1x1 sites, a linear site."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.mix, self.wide = nn.Conv2d(16, 24, 3, padding="same"), nn.Conv2d(24, 32, 1)
        self.last = nn.Conv2d(32, 16, 1, bias=False)
        self.hidden, self.head = nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.nn.functional.silu(self.last(torch.relu(self.wide(torch.relu(self.mix(x))))))
        return self.head(torch.tanh(self.hidden(nn.functional.avg_pool2d(x, 4).flatten(1))))


@pytest.fixture(scope="module")
def wide(lab):
    torch.manual_seed(0)
    x = torch.randn(24, 3, 16, 16)
    return replace(lab.case("mlp"), model=Wide().eval(), x=x, y=torch.arange(24) % 5)


def optimised(engine, folder):
    """Operators of a graph as the engine rewrites it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    for key, value in AS_WRITTEN.items():
        options.add_session_config_entry(key, value)
    block = engine.block
    options.add_external_initializers_from_files_in_memory(["base.bin"], [block], [len(block)])
    onnxruntime.InferenceSession(engine.graph, options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def agree(lab, case, built, role="train"):
    """The worst relative difference between the step and the graph, after one step."""
    engine = lab.engine(built, role)
    values = {"x": case.x, "y": case.y, "w": torch.ones(len(case.x))}
    values |= {"learning_rate": torch.tensor(0.1)}
    found = engine(values | {f"adapter/{k}": v for k, v in built.adapter.items()})
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(
            built.frozen, built.adapter, {}, case.x, case.y, values["w"], values["learning_rate"]
        )
    return engine, max(relative(found[f"next/adapter/{k}"], v) for k, v in adapter.items())


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
def test_convolutions_run_in_integers_and_agree(lab, wide, rule, tmp_path):
    built = lab.stirred(lab.build(wide, base_dtype="int8", rule=rule))
    assert "stem.weight:conv.x_scale" not in built.frozen
    engine, error = agree(lab, wide, built)
    assert error < 1e-5
    assert optimised(engine, tmp_path)["QLinearConv"] == 3


def test_convolutions_that_are_computed_again_agree(lab, wide, tmp_path):
    """Two integer convolutions read one weight: the engine would name its own copy of it twice."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    case = replace(wide, model=nn.Sequential(*layers, *pool))
    built = lab.stirred(lab.build(case, base_dtype="int8", rule="backprop_checkpointed"))
    engine, error = agree(lab, case, built)
    assert error < 1e-5
    assert optimised(engine, tmp_path)["QLinearConv"] > 8


def test_stacked_clients_with_int8_convolutions_are_single_clients(lab, wide):
    for rule in ("dfa", "backprop"):
        built = lab.build(wide, base_dtype="int8", rule=rule)
        adapters = [lab.stirred(built, seed).adapter for seed in range(3)]
        stacked = {k: torch.stack([a[k] for a in adapters]) for k in adapters[0]}
        x, y, w = wide.x.view(3, 8, 3, 16, 16), wide.y.view(3, 8), torch.ones(3, 8)

        def train(adapter, x, y, w, built=built):
            return built.step.train(built.frozen, adapter, {}, x, y, w, torch.tensor(0.1))[2]

        with torch.no_grad():
            together = torch.func.vmap(train)(stacked, x, y, w)
            for i, adapter in enumerate(adapters):
                for key, value in train(adapter, x[i], y[i], w[i]).items():
                    assert relative(together[key][i], value) < 1e-5, key


def test_int4_weights_are_fused_by_the_engine_and_agree_exactly(lab, wide, tmp_path):
    built = lab.stirred(lab.build(wide, base_dtype="int4"))
    assert "hidden.weight:linear.int4" in built.frozen
    engine, error = agree(lab, wide, built)
    assert error < 1e-5
    assert optimised(engine, tmp_path)["MatMulNBits"] == 1
    assert {node.domain for node in engine.model.graph.node} == {""}


def test_int8_both_ways_has_a_product_for_each_way(lab, tmp_path):
    case, products = lab.case("mlp"), {}
    for backward in ("float32", "int8"):
        settings = {"base_dtype": "int8", "rule": "backprop", "backward": backward}
        built = lab.stirred(lab.build(case, **settings))
        engine, error = agree(lab, case, built)
        assert error < 1e-5
        products[backward] = optimised(engine, tmp_path)["MatMulInteger"]
    assert products["int8"] == products["float32"] + 1  # the first of two layers needs no way back


def test_mixed_precision_takes_the_smallest_within_tolerance_and_then_fits_a_budget():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
    model.append(nn.Linear(64, 5))
    x = torch.randn(64, 64)

    def chosen(**mixed):
        config = CompileConfig(base_dtype="mixed", mixed=MixedConfig(**mixed))
        return build(model, x, config).precision

    exact = chosen(tolerance=1e-30)
    assert [layer.chosen for layer in exact] == ["float32", "float32"]
    for layer in exact:
        assert 0 == layer.damage["float32"] < layer.damage["int8"] < layer.damage["int4"]
        assert layer.size["float32"] > layer.size["int8"] > layer.size["int4"]
    coarse = chosen(tolerance=1.0)
    assert [layer.chosen for layer in coarse] == ["int4", "int4"]
    biases = 4 * (96 + 64)
    sizes = [layer.size for layer in exact]
    budget = biases + sizes[0]["int8"] + sizes[1]["int8"] + 100
    fitted = chosen(tolerance=1e-30, budget_bytes=budget)
    assert sum(layer.size[layer.chosen] for layer in fitted) + biases <= budget
    assert {layer.chosen for layer in fitted} <= {"int8", "int4"}
    with pytest.raises(CompileError, match="less than the smallest base"):
        chosen(budget_bytes=biases + sizes[0]["int4"])


def test_a_ranges_outlier_in_one_example_leaves_the_others_as_they_were(lab, wide):
    built = lab.build(wide, base_dtype="int8")
    changed = wide.x.clone()
    changed[0] *= 1e4
    with torch.no_grad():
        before, after = (
            built.step.predict(built.frozen, built.adapter, x).numpy() for x in (wide.x, changed)
        )
    assert not np.array_equal(before[0], after[0])
    assert np.array_equal(before[1:], after[1:])
