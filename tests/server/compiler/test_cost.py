"""Counted work: int8 changes the type of a multiplication, never whether it is counted."""

import pytest
import torch
from torch import nn

from rootlet_server.compiler.cost import count_cost

CHANNELS, POSITIONS = 16, 36


@pytest.fixture(scope="module")
def convolution(lab):
    """16 channels in and out, which is what a convolution needs to run in integers."""
    case = lab.case("mlp")
    torch.manual_seed(0)
    layers = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS, 5)).eval()
    return type(case)("wide", model, torch.randn(24, CHANNELS, 6, 6), case.y)


def cost(built):
    return count_cost(built.step, built.frozen, built.adapter, built.example, 7)


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
@pytest.mark.parametrize("name", ["convolution", "vit_gpt"])
def test_int8_and_float32_together_are_those_of_a_float32_build(lab, convolution, name, rule):
    case = convolution if name == "convolution" else lab.case(name)
    quantised, full = (lab.build(case, base_dtype=d, rule=rule) for d in ("int8", "float32"))
    found, expected = cost(quantised), cost(full)
    for graph in ("train", "predict"):
        together = found[f"{graph}_macs_int8"] + found[f"{graph}_macs_float32"]
        assert together == expected[f"{graph}_macs_float32"]
        assert expected[f"{graph}_macs_int8"] == 0


def test_an_int8_convolution_is_counted_by_hand(lab, convolution):
    built = lab.build(convolution, base_dtype="int8")
    assert any("conv.x_scale" in name for name in built.frozen)
    assert cost(built)["predict_macs_int8"] == POSITIONS * CHANNELS * CHANNELS * 9
