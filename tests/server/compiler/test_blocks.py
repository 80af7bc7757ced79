"""Blocks: one for each site is DFA, one for all is backprop, and inside one credit is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler.alignment import alignment
from rootlet_server.compiler.blocks import find_points
from rootlet_server.compiler.cost import count_cost


def relative(found, expected):
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def deep(lab, depth=5):
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(8, 8), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(8, 5))
    return replace(lab.case("mlp"), model=model, x=torch.randn(24, 8), y=torch.arange(24) % 5)


def both(lab, built, rule, case):
    return (lab.gradients(built, name, case.x, case.y, double=True) for name in (rule, "backprop"))


def test_one_block_for_each_site_is_dfa_below_the_top_one(lab, zoo_name):
    case = lab.case(zoo_name)
    one = lab.stirred(lab.built(zoo_name))
    learner = one.step.learner
    points = find_points(learner.program, learner.sites, case.x[:4], 1)
    by_site = {site.node: site for site in learner.sites}
    renamed = dict(one.frozen)  # a top's feedback has the name of its node
    for point in points:
        (below,) = point.sites
        assert point.node == by_site[below].chain.point
        for key, value in one.frozen.items():
            if key.startswith(f"{below}:feedback."):
                renamed[point.node + key.removeprefix(below)] = value
    step = replace(one.step, learner=replace(learner, points=points))
    blocks = lab.gradients(
        replace(one, step=step, frozen=renamed), "dfa_blocks", case.x, case.y, double=True
    )
    dfa, backprop = both(lab, one, "dfa", case)
    with_feedback = {by_site[node].module for point in points for node in point.sites}
    exact = {site.module for site in learner.sites if site.module not in with_feedback}
    assert len(points) == len(learner.sites) - 1
    for site in learner.sites:
        name = f"{site.module}.lora_B"
        if site.module in exact:
            assert relative(blocks[name], backprop[name]) < 1e-12
        elif sum(other.module == site.module for other in learner.sites) == 1:
            assert relative(blocks[name], dfa[name]) < 1e-12


@pytest.mark.parametrize("size", ["all", 5, 50])
def test_one_block_for_all_sites_is_backprop(lab, size):
    case = deep(lab)
    built = lab.stirred(lab.build(case, block_size=size))
    assert built.step.learner.points == ()
    assert not [key for key in built.frozen if "feedback" in key]
    blocks, backprop = both(lab, built, "dfa_blocks", case)
    for name, value in backprop.items():
        assert relative(blocks[name], value) < 1e-12


def test_blocks_of_two_pass_the_broadcast_down(lab):
    case = deep(lab)
    built = lab.stirred(lab.build(case, block_size=2))
    tops = [point.sites for point in built.step.learner.points]
    assert tops == [("linear",), ("linear_1", "linear_2")]
    found = lab.gradients(built, "dfa_blocks", case.x, case.y, double=True)

    learner = built.step.learner.in_float64()
    frozen = {k: v.double() if v.is_floating_point() else v for k, v in built.frozen.items()}
    adapter = {k: v.double() for k, v in built.adapter.items()}
    weights = {
        site.module: frozen[f"{site.module}.weight:linear"].t()
        + learner.scale
        * adapter[f"{site.module}.lora_B"]
        @ frozen[f"{site.module}.lora_A:linear"].t()
        for site in learner.sites
    }
    forward = learner.forward(frozen, adapter, case.x.double())
    error = (forward.output.softmax(1) - nn.functional.one_hot(case.y, 5)) / len(case.x)
    point = built.step.learner.points[1]
    matrix = frozen[f"{point.node}:feedback.q"] * frozen[f"{point.node}:feedback.scale"]

    def slope(node):
        return 1 - forward.taps[node].output.tanh().square()

    upper = error @ matrix * slope("linear_2")
    lower = upper @ weights["4"] * slope("linear_1")
    for module, node, delta in (("4", "linear_2", upper), ("2", "linear_1", lower)):
        expected = delta.t() @ forward.taps[node].projected
        assert relative(found[f"{module}.lora_B"], expected) < 1e-12


def test_alignment_rises_with_the_size_of_blocks(lab):
    case = deep(lab, depth=6)
    cosines = []
    for size in (1, 2, 3, 6):
        built = lab.build(case, block_size=size)
        # DFA's own K = 1 also breaks the top block off; its layers are compared below it.
        cosines.append([layer.cosine for layer in alignment(built, case.x).layers][:3])
    mean = [sum(each) / 3 for each in cosines]
    assert mean == sorted(mean), mean
    assert mean[-1] == pytest.approx(1, abs=1e-5)


def test_auto_joins_what_is_badly_aligned_within_its_budget(lab):
    case = deep(lab, depth=6)
    noisy = {"feedback": "random"}
    free = lab.build(case, block_size="auto", block_budget=2.0, **noisy)
    assert alignment(free, case.x[:64]).lowest >= 0.5
    tight = lab.build(case, block_size="auto", block_budget=0.8, **noisy)
    cost = {
        rule: count_cost(
            replace(tight.step, rule=rule), tight.frozen, tight.adapter, tight.example, 0
        )["train_macs_float32"]
        for rule in ("dfa_blocks", "backprop")
    }
    assert cost["dfa_blocks"] <= 0.8 * cost["backprop"]
    assert len(free.step.learner.points) < len(tight.step.learner.points)


def test_queries_and_keys_learn_through_the_softmax(lab):
    case = lab.case("vit")
    left_out = {s.module for s in lab.built("vit", block_size=2).step.learner.sites}
    built = lab.stirred(lab.built("vit", attention="local"))
    learner = built.step.learner
    queries = ["block.attention.query", "block.attention.key"]
    assert {s.module for s in learner.sites} == left_out | set(queries)
    (point,) = (p for p in learner.points if len(p.sites) == 2)
    assert point.width == 16
    dfa, backprop = both(lab, built, "dfa_blocks", case)
    for module in queries:
        name = f"{module}.lora_B"
        cosine = nn.functional.cosine_similarity(dfa[name].flatten(), backprop[name].flatten(), 0)
        assert cosine > 0.5, module


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit_gpt"])
def test_the_graph_in_the_devices_engine_is_the_step(lab, name):
    case = lab.case(name)
    built = lab.stirred(lab.built(name, rule="dfa_blocks"))
    x, y, w, rate = case.x[:5], case.y[:5], torch.ones(5), torch.tensor(0.1)
    found = lab.engine(built, "train")(
        {"x": x, "y": y, "w": w, "learning_rate": rate}
        | {f"adapter/{k}": v for k, v in built.adapter.items()}
    )
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
    for key, value in adapter.items():
        assert relative(found[f"next/adapter/{key}"], value) < 1e-5, key
