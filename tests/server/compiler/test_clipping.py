"""The clipped sum: against a loop over batches of one, and what one example can do to it.

What a private step promises rests on the last three tests: an example changes its own term alone,
and that term is at most ``max_grad_norm`` long, whatever the example holds.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from rootlet_server.compiler.clipping import clip_factors
from rootlet_server.compiler.rules import RULES, Batch
from rootlet_server.compiler.rules.credit import Dense, Outer
from rootlet_server.compiler.verify import disagreement

SUBSET = ("mlp", "residual_cnn", "vit_timm_class_token", "vit_mha", "shared", "folded")
BOUND = 0.3
WITHOUT_STEP = sorted(name for name, rule in RULES.items() if not rule.needs_step)


def by_loop(lab, built, rule, x, y, w):
    """Clip the gradient of each batch of one, then add up: float64."""
    total, norms = {}, []
    for n in range(len(x)):
        alone = lab.gradients(built, rule, x[n : n + 1], y[n : n + 1], double=True)
        norms.append(sum(value.square().sum() for value in alone.values()).sqrt())
        factor = w[n] * min(1.0, BOUND / float(norms[-1]))
        total = {k: total.get(k, 0) + factor * v for k, v in alone.items()}
    return total, torch.stack(norms)


def clipped(built, x, y, w, bound=BOUND):
    with torch.no_grad():
        return built.step.gradients(built.frozen, built.adapter, x, y, w, torch.tensor(bound))


def length(gradients):
    return sum(value.double().square().sum() for value in gradients.values()).sqrt().item()


def stirred(lab, name, **options):
    return lab.stirred(lab.built(name, **options))


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, "dfa") for name in SUBSET]
    + [("mlp", rule) for rule in WITHOUT_STEP if rule != "dfa"]
    + [("shared", "backprop"), ("vit_mha", "backprop")],
)
def test_the_sum_is_that_of_a_loop_over_examples(lab, name, rule):
    case, built = lab.case(name), stirred(lab, name, rule=rule)
    x, y, w = case.x[:5], case.y[:5], torch.tensor([1.0, 0, 1, 1, 1])
    expected, norms = by_loop(lab, built, rule, x, y, w)
    assert norms.max() > BOUND
    *sums, found = clipped(built, x, y, w)
    assert found.keys() == expected.keys() == built.adapter.keys()
    for key, value in expected.items():
        assert disagreement(value, found[key].numpy()) < 1e-5, key
    assert sums[2] == 4


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
def test_a_bound_above_every_norm_clips_nothing(lab, rule):
    case, built = lab.case("vit_gpt"), stirred(lab, "vit_gpt", rule=rule)
    x, y, w = case.x[:4], case.y[:4], torch.ones(4)
    expected = lab.gradients(built, rule, x, y)
    for key, value in clipped(built, x, y, w, 1e6)[3].items():
        assert disagreement(4 * expected[key], value.numpy()) < 1e-5, key


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4, 6), (3, 4, 5)), ((3, 4, 6), (3, 4, 1)), ((3, 2, 40), (3, 2, 30)), ((3, 6), (3, 5))],
)
def test_every_form_of_the_norm_is_that_of_the_products(left, right):
    generator = torch.Generator().manual_seed(0)
    outer = Outer(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (left, right))
    )
    expected = outer.per_example().flatten(1).square().sum(1)
    torch.testing.assert_close(outer.squared_norms(), expected)
    compact = outer.compact()
    assert isinstance(compact, Dense) == (len(left) == 3 and left[2] < 40)
    torch.testing.assert_close(compact.squared_norms(), expected)


def test_positions_that_cancel_do_not_hide_what_they_are_made_of():
    """Terms of 1e8 that cancel would erase the other examples' terms in a float32 sum."""
    left = torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(0))
    right = torch.ones(1, 2, 30)
    outer = Outer(torch.cat([1e8 * left, -1e8 * left], 1), right)
    factors = clip_factors(outer.squared_norms(), torch.tensor(1.0))
    mass = (outer.left.norm() * outer.right.norm() * factors).item()
    assert 0 < mass < 200


def test_a_squared_norm_below_float32_does_not_hide_a_gradient():
    outer = Outer(torch.full((1, 4), 1e-20), torch.full((1, 4), 1e19))
    assert outer.per_example().norm().item() == pytest.approx(0.4)
    assert outer.squared_norms().item() >= 0.16


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", ["mlp", "vit_gpt", "uint8_cnn"])
def test_one_example_alters_its_own_gradient_alone(lab, name, base_dtype):
    """Without any tolerance: the other examples' gradients are the same bits."""
    case, built = lab.case(name), stirred(lab, name, base_dtype=base_dtype)
    step, changed = built.step, case.x[:5].clone()
    changed[2] = case.x[7]
    if changed.is_floating_point():
        changed[2] *= 50
    found = []
    for x in (case.x[:5], changed):
        batch = Batch(x=x, y=case.y[:5])
        with torch.no_grad():
            found.append(
                RULES[step.rule].credit(
                    step.learner, built.frozen, built.adapter, batch, torch.ones(5)
                )
            )
    for key, parts in found[0].outers.items():
        for part, other in zip(parts, found[1].outers[key], strict=True):
            same = (part.per_example() == other.per_example()).flatten(1).all(1)
            assert same.tolist() == [True, True, bool(same[2]), True, True], key
    assert not torch.equal(found[0].loss[2], found[1].loss[2])


@pytest.fixture(scope="module", params=["float32", "int8"])
def graph(request, lab):
    """The exported graph of a transformer, with its build and its case."""
    built = stirred(lab, "vit_gpt", base_dtype=request.param)
    engine = lab.engine(built, "grads")
    adapter = {f"adapter/{k}": v for k, v in built.adapter.items()}

    def run(x, y, w, bound=BOUND):
        feed = {"x": x, "y": y, "w": w, "max_grad_norm": torch.tensor(bound)}
        return engine(feed | adapter)

    return run, built, lab.case("vit_gpt")


def in_graph(found):
    return {k.removeprefix("grads/"): v for k, v in found.items() if k.startswith("grads/")}


def test_the_graph_gives_what_the_step_gives(graph):
    run, built, case = graph
    for size in (5, 1):
        x, y, w = case.x[:size], case.y[:size], torch.ones(size)
        w[3:] = 0
        *sums, expected = clipped(built, x, y, w)
        found = run(x, y, w)
        for name, value in zip(("loss_sum", "metric_sum", "weight_sum"), sums, strict=True):
            assert disagreement(value, found[name].numpy()) < 1e-3
        for key, value in expected.items():
            assert disagreement(value, in_graph(found)[key].numpy()) < 3e-3, key


@pytest.mark.parametrize("value", [1e30, 1e12, -1e38, float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("where", ["all", "one"])
def test_no_example_changes_the_sum_by_more_than_the_bound(graph, value, where):
    run, _, case = graph
    probe = case.x[:4].clone()
    if where == "all":
        probe[1] = value
    else:
        probe[1].view(-1)[3] = value
    y, w = case.y[:4], torch.ones(4)
    others = in_graph(run(probe, y, torch.tensor([1.0, 0, 1, 1])))
    total = in_graph(run(probe, y, w))
    assert all(v.isfinite().all() for v in total.values())
    assert length({k: total[k].double() - others[k].double() for k in total}) <= BOUND * (1 + 1e-5)
    without = case.x[:4][[0, 2, 3]]
    expected = in_graph(run(without, y[[0, 2, 3]], torch.ones(3)))
    assert length({k: others[k].double() - expected[k].double() for k in expected}) < 1e-5


def test_a_weight_above_one_counts_as_one(graph):
    run, _, case = graph
    x, y = case.x[:2], case.y[:2]
    plain, heavy = (in_graph(run(x, y, torch.tensor([1.0, w]))) for w in (1.0, 100.0))
    assert all(torch.equal(plain[k], heavy[k]) for k in plain)


@pytest.mark.parametrize("rule", WITHOUT_STEP)
def test_every_rule_exports_it(lab, rule):
    case, built = lab.case("mlp"), stirred(lab, "mlp", rule=rule)
    x, y, w = case.x[:3], case.y[:3], torch.tensor([1.0, 1, 0])
    *sums, expected = clipped(built, x, y, w)
    feed = {"x": x, "y": y, "w": w, "max_grad_norm": torch.tensor(BOUND)}
    feed |= {f"adapter/{k}": v for k, v in built.adapter.items()}
    found = lab.engine(built, "grads")(feed)
    assert disagreement(sums[0], found["loss_sum"].numpy()) < 1e-5
    for key, value in expected.items():
        assert disagreement(value, in_graph(found)[key].numpy()) < 1e-5, key


def test_the_bound_scales_what_is_clipped(graph):
    """Under small bounds every example is clipped, and the sum is proportional to the bound."""
    run, _, case = graph
    x, y, w = case.x[:3], case.y[:3], torch.ones(3)
    sums = [in_graph(run(x, y, w, bound)) for bound in (1e-3, 1e-2)]
    for small, large in pairwise(sums):
        assert all(np.allclose(10 * small[k], large[k], rtol=1e-5, atol=1e-9) for k in small)


def test_a_learned_a_is_normed_with_its_b(lab):
    case = lab.case("mlp")
    built = stirred(lab, "mlp", kind="lora")
    x, y, w = case.x[:4], case.y[:4], torch.ones(4)
    expected, _ = by_loop(lab, built, "dfa", x, y, w)
    found = clipped(built, x, y, w)[3]
    assert any(key.endswith("lora_A") for key in found)
    for key, value in expected.items():
        assert disagreement(value, found[key].numpy()) < 1e-5, key


def test_batch_clipping_would_fail_the_loop(lab):
    """Negative control: one factor for the whole batch is not per-example clipping."""
    case, built = lab.case("mlp"), stirred(lab, "mlp")
    x, y, w = case.x[:5], case.y[:5], torch.ones(5)
    expected, _ = by_loop(lab, built, "dfa", x, y, w)
    batch = lab.gradients(built, "dfa", x, y, double=True)
    factor = min(1.0, BOUND * 5 / length({k: 5 * v for k, v in batch.items()}))
    wrong = {k: 5 * factor * v for k, v in batch.items()}
    assert max(disagreement(expected[k], wrong[k].numpy()) for k in expected) > 0.01
