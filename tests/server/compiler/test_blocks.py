"""Blocks: one for each site is DFA, one for all is backprop, and inside one credit is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler.alignment import alignment
from rootlet_server.compiler.block_choice import stored_bytes
from rootlet_server.compiler.blocks import find_points
from rootlet_server.compiler.choice_config import BlockBudget
from rootlet_server.compiler.config import CompileConfig
from rootlet_server.compiler.cost import count_cost
from rootlet_server.compiler.feedback import make_feedback


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


UNBOUND = BlockBudget(time=9.0, memory=9.0)


def test_auto_joins_what_is_badly_aligned_within_its_budget(lab):
    case = deep(lab, depth=6)
    noisy = {"feedback": "random"}
    free = lab.build(case, block_size="auto", block_budget=UNBOUND, **noisy)
    assert alignment(free, case.x[:64]).lowest >= 0.5
    assert free.blocks.report.below == ()
    tight = lab.build(case, block_size="auto", block_budget=BlockBudget(time=0.8), **noisy)
    cost = {
        rule: count_cost(
            replace(tight.step, rule=rule), tight.frozen, tight.adapter, tight.example, 0
        )["train_macs_float32"]
        for rule in ("dfa_blocks", "backprop")
    }
    assert tight.blocks.time == cost["dfa_blocks"] / cost["backprop"] <= 0.8
    assert tight.blocks.report.below  # and says which layers still miss the floor
    assert len(free.step.learner.points) < len(tight.step.learner.points)
    modules = [site.module for site in free.step.learner.sites]
    for built in (free, tight):
        assert [module for block in built.blocks.blocks for module in block] == modules
        assert len(built.blocks.blocks) == len(built.step.learner.points) + 1


def test_auto_keeps_to_its_memory(lab):
    case, start = lab.case("vit"), lab.built("vit", block_size="auto")
    options = {"block_size": "auto", "feedback": "random"}
    free = lab.build(case, block_budget=UNBOUND, **options)
    bound = BlockBudget(time=9.0, memory=start.blocks.memory)
    tight = lab.build(case, block_budget=bound, **options)
    assert start.blocks.memory < 1
    assert free.blocks.memory > tight.blocks.memory
    assert tight.blocks.memory <= start.blocks.memory


def test_what_is_stored_for_the_way_back_by_hand(lab):
    """Of five layers the 8 values after tanh and the 4 of A h; the inputs too, where A learns."""
    for kind, floats in (("calibrated", 5 * (8 + 4)), ("lora", 5 * (8 + 4) + 8)):
        built = lab.build(deep(lab), kind=kind)
        found = stored_bytes(built.step.learner, built.frozen, built.adapter, built.example, ())
        assert found == 4 * floats * len(built.example)  # the first input, and the others are there


def test_auto_calibrates_over_the_float_base(lab):
    """Of steep layers, whose mean Jacobian says little: blocks are joined and calibrated again."""
    case = deep(lab, depth=6)
    for module in case.model:
        if isinstance(module, nn.Linear):
            module.weight.data *= 6
    budget = BlockBudget(time=0.87)
    found = lab.build(case, base_dtype="int8", block_size="auto", block_budget=budget)
    learner = found.step.learner
    assert 0 < len(learner.points) < 5
    over_float, over_int8 = (
        make_feedback(learner, frozen, found.adapter, case.x, CompileConfig())
        for frozen in (lab.build(case).frozen, found.frozen)
    )
    for key, value in over_float.items():
        assert torch.equal(found.frozen[key], value), key
    assert any(not torch.equal(found.frozen[key], value) for key, value in over_int8.items())


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
