"""The product of an error with int8 feedback: which form, how exact, and that devices run it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler.broadcast import (
    INT8_FROM,
    broadcast,
    centred,
    int8_product,
    stays_int8,
)
from rootlet_server.compiler.capture import example_inputs
from rootlet_server.compiler.feedback_forms import feedback_matrix, form_keys
from rootlet_server.compiler.int8 import quantize_weight

WIDE, OUTPUTS = 512, INT8_FROM // 512


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("entries", [10, OUTPUTS])
def test_it_is_a_product_with_the_matrix(entries):
    torch.manual_seed(0)
    q, scale = quantize_weight(torch.randn(entries, WIDE).double(), channel_dim=0)
    error = torch.randn(5, entries).double()
    expected, found = error @ (q.double() * scale), broadcast(error, q, scale)
    if not stays_int8(entries, WIDE):
        torch.testing.assert_close(found, expected)
        return
    half_step = (error * scale.squeeze(1)).abs().amax(1, keepdim=True) / 127 / 2
    assert not torch.allclose(found, expected, rtol=1e-9)
    assert ((found - expected).abs() <= half_step * q.double().abs().sum(0)).all()


def test_an_example_does_not_see_the_others():
    torch.manual_seed(0)
    q, scale = quantize_weight(torch.randn(OUTPUTS, WIDE), channel_dim=0)
    error = torch.randn(3, OUTPUTS)
    alone = broadcast(error[:1], q, scale)
    error[1:] *= 1000
    assert torch.equal(broadcast(error, q, scale)[:1], alone)


def test_clients_are_stacked():
    torch.manual_seed(0)
    q, scale = quantize_weight(torch.randn(OUTPUTS, WIDE), channel_dim=0)
    errors = torch.randn(3, 2, OUTPUTS)
    stacked = torch.func.vmap(lambda error: broadcast(error, q, scale))(errors)
    each = torch.stack([broadcast(error, q, scale) for error in errors])
    torch.testing.assert_close(stacked, each)


def test_what_the_rows_have_in_common_does_not_come_through_once_it_is_taken_out():
    torch.manual_seed(0)
    matrix = torch.randn(OUTPUTS, WIDE).double() + 3 * torch.randn(WIDE).double()
    error = torch.randn(8, OUTPUTS).double().softmax(1)
    error[:, 0] -= 1
    expected = error @ matrix
    torch.testing.assert_close(error @ centred(matrix), expected)
    errors = [
        relative(int8_product(error, *quantize_weight(m, channel_dim=0)), expected)
        for m in (matrix, centred(matrix))
    ]
    # Of a softmax over 512 classes most entries are under half a step, 1/254 of the largest, and
    # vanish: the sum of the rounded error is about 1, and lets 3 times M's own size through.
    assert errors[0] > 1
    assert errors[1] < 0.1


class Many(nn.Module):
    """As many classes as make the feedback large."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(6, WIDE), nn.Linear(WIDE, OUTPUTS)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def many(lab):
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    case = replace(lab.case("mlp"), model=Many(), x=x, y=torch.arange(16) % OUTPUTS)
    return case, lab.stirred(lab.build(case, base_dtype="int8"))


def test_large_feedback_is_stored_without_what_its_rows_have_in_common(many):
    _, built = many
    (site,) = built.step.learner.sites
    matrix = feedback_matrix(site.node, built.frozen, torch.float64)
    # A row is rounded to 1/254 of its largest, about 3 deviations; a mean of 512 rows much closer.
    assert float(matrix.mean(0).norm() / matrix.norm()) < 0.01 / OUTPUTS**0.5


def test_the_rule_is_near_the_one_with_the_float_product(many, lab):
    case, built = many
    (site,) = built.step.learner.sites
    q_key, scale_key, left_key = form_keys(site.node)
    frozen = dict(built.frozen)
    # A factor in front makes the same M, and its few rows keep the product in floating point.
    whole = feedback_matrix(site.node, frozen, torch.float32)
    rank = INT8_FROM // WIDE - 1
    left, singular, right = torch.linalg.svd(whole, full_matrices=False)
    frozen |= {left_key: (left * singular)[:, :rank]}
    q, scale = quantize_weight(right[:rank], channel_dim=0)
    frozen |= {q_key: q, scale_key: scale}
    found, expected = (
        lab.gradients(b, "dfa", case.x, case.y, double=True)["hidden.lora_B"]
        for b in (built, replace(built, frozen=frozen))
    )
    # 4 % is lost with a softmax's tail (decision 0008), and int8 factors lose 1 % of M.
    assert 0 < relative(found, expected) < 0.1


def test_a_device_multiplies_integers_and_agrees_with_the_step(many, lab):
    case, built = many
    engine = lab.engine(built, "train")
    products = Counter(node.op_type for node in engine.model.graph.node)["MatMulInteger"]
    assert products == 3  # the base, A h and the feedback
    feed = example_inputs(built.step, case.x, built.adapter) | {"y": case.y}
    found = engine(feed)
    with torch.no_grad():
        _, _, adapter, _ = built.step.train(
            built.frozen, built.adapter, {}, case.x, case.y, feed["w"], feed["learning_rate"]
        )
    for name, value in adapter.items():
        moved = found[f"next/adapter/{name}"] - built.adapter[name]
        # Rounding in float32; an activation next to a boundary may fall on its other side.
        assert relative(moved, value - built.adapter[name]) < 1e-2, name


def test_small_feedback_stays_in_floating_point(lab):
    built = lab.built("mlp", base_dtype="int8")
    engine = lab.engine(built, "train")
    products = Counter(node.op_type for node in engine.model.graph.node)["MatMulInteger"]
    assert products == 2 * len(built.step.learner.sites)
