"""Queries and keys get no adapter, values do, however the attention is written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn


def columns(built):
    return {s.module: s.columns for s in built.step.learner.sites}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", {"block.attention.value": (0, 16), "block.attention.out": (0, 16)}),
        ("vit_gpt", {"block.attention.qkv": (32, 48), "block.attention.out": (0, 16)}),
        (
            "vit_timm_class_token",
            {"block.attention.qkv": (32, 48), "block.attention.proj": (0, 16)},
        ),
        (
            "vit_mha",
            {"block.attention.mha.v_proj": (0, 16), "block.attention.mha.out_proj": (0, 16)},
        ),
        (
            "encoder",
            {
                "encoder.layers.0.self_attn.v_proj": (0, 16),
                "encoder.layers.0.self_attn.out_proj": (0, 16),
            },
        ),
        (
            "encoder_sequence_first",
            {
                "encoder.layers.0.self_attn.v_proj": (0, 16),
                "encoder.layers.0.self_attn.out_proj": (0, 16),
            },
        ),
        ("tokens", {"block.attention.qkv": (32, 48), "block.attention.out": (0, 16)}),
    ],
)
def test_values_and_outputs_are_adapted_queries_and_keys_are_not(lab, name, expected):
    found = columns(lab.built(name))
    feed_forward = {k for k in found if k.endswith(("up", "down", "linear1", "linear2"))}
    assert len(feed_forward) == 2
    patch = {k for k in found if k == "patch"}  # a convolution that cuts the image into tokens
    assert {k: v for k, v in found.items() if k not in feed_forward | patch} == expected


def test_b_of_a_packed_projection_covers_the_values_alone(lab):
    case, built = lab.case("vit_gpt"), lab.stirred(lab.built("vit_gpt"))
    assert built.adapter["block.attention.qkv.lora_B"].shape == (16, 4)
    node = next(s.node for s in built.step.learner.sites if s.width != s.out_features)
    learner = built.step.learner
    with torch.no_grad():
        alone = {
            k: 0 * v if "lora" in k and "qkv" not in k else v for k, v in built.adapter.items()
        }
        moved = learner.forward(built.frozen, alone, case.x, keep={node}).kept[node]
        still = {k: 0 * v if "lora" in k else v for k, v in built.adapter.items()}
        base = learner.forward(built.frozen, still, case.x, keep={node}).kept[node]
    assert torch.equal(moved[..., :32], base[..., :32])
    assert not torch.equal(moved[..., 32:], base[..., 32:])


def test_target_modules_override_the_rule(lab):
    built = lab.build(lab.case("vit"), target_modules=("query", "block.up"))
    assert columns(built) == {"block.attention.query": (0, 16), "block.up": (0, 32)}
    packed = lab.build(lab.case("vit_gpt"), target_modules=("qkv",))
    assert columns(packed) == {"block.attention.qkv": (0, 48)}


def test_a_target_is_a_whole_path_suffix(lab):
    built = lab.build(lab.case("mlp"), target_modules=("first",))
    assert columns(built) == {"first": (0, 24)}


def test_a_softmax_gate_over_a_plain_layer_is_not_attention(lab):
    class Gate(nn.Module):
        """A softmax, but no product of two projections before it."""

        def __init__(self):
            super().__init__()
            self.gate, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.gate(x).softmax(-1) * self.value(x))

    case = replace(lab.case("mlp"), model=Gate(), x=torch.randn(8, 6))
    assert set(columns(lab.build(case))) == {"gate", "value"}


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "tokens", "shared"])
def test_the_head_is_found_and_learns_in_full(lab, name):
    built = lab.built(name)
    assert built.step.learner.head.module == "head"
    assert "head.weight" in built.adapter
    assert not any(site.module == "head" for site in built.step.learner.sites)
    assert not any(key.startswith("head.") for key in built.frozen)
