"""Checkpointed backprop: the same gradient, and a second pass that no optimiser merges away."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from rootlet_server.compiler.segments import find_segments

PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "Conv", "FusedConv"}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def test_the_gradient_is_backprops(lab, zoo_name):
    case, built = lab.case(zoo_name), lab.stirred(lab.built(zoo_name))
    x, y = case.x[:5], case.y[:5]
    found, expected = (
        lab.gradients(built, rule, x, y, double=True)
        for rule in ("backprop_checkpointed", "backprop")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-12, name


def test_segments_meet_in_one_value_and_hold_every_site_once(lab, zoo_name):
    learner = lab.built(zoo_name).step.learner
    segments = find_segments(learner.program, learner.sites)
    assert segments[0].start is None
    for below, above in pairwise(segments):
        assert above.start == below.end
    held = [site.node for segment in segments for site in segment.sites]
    assert held == [site.node for site in learner.sites]


def products(graph, optimise, folder):
    """Products with matrices and kernels, after the engine's own optimisers if asked for."""
    if not optimise:
        return sum(node.op_type in PRODUCTS for node in graph.graph.node)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimised = onnx.load(folder / "optimised.onnx")
    return sum(node.op_type in PRODUCTS for node in optimised.graph.node)


def deep(lab):
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(12, 12), nn.Tanh())]
    return replace(lab.case("mlp"), model=nn.Sequential(*layers, nn.Linear(12, 5)))


@pytest.mark.parametrize("name", ["deep", "residual_cnn", "vit_gpt"])
def test_the_engine_computes_again_what_was_not_kept(lab, name, tmp_path):
    case = deep(lab) if name == "deep" else lab.case(name)
    plain = lab.build(case, rule="backprop")
    built = replace(plain, step=replace(plain.step, rule="backprop_checkpointed"))
    built = lab.stirred(built)
    learner = built.step.learner
    segments = find_segments(learner.program, learner.sites)
    assert len(segments) > 1
    again = sum(len(segment.sites) for segment in segments[:-1])
    engines = [lab.engine(each, "train") for each in (plain, built)]
    for optimise in (False, True):
        before, after = (products(copy.deepcopy(e.model), optimise, tmp_path) for e in engines)
        assert after >= before + again  # the base's product of every site below the top segment
    x, y, w, rate = case.x[:5], case.y[:5], torch.ones(5), torch.tensor(0.1)
    found = engines[1](
        {"x": x, "y": y, "w": w, "learning_rate": rate}
        | {f"adapter/{k}": v for k, v in built.adapter.items()}
    )
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
    for key, value in adapter.items():
        assert relative(found[f"next/adapter/{key}"], value) < 1e-5, key
