"""The alignment monitor against cases whose cosine is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler import CalibrationError
from rootlet_server.compiler.alignment import _drawn, alignment


@pytest.fixture(scope="module")
def one_hidden(lab):
    """One hidden layer, where calibrated feedback is the head's weight up to its rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    return lab.build(replace(lab.case("mlp"), model=model))


def by_module(report):
    return {layer.module: layer for layer in report.layers}


def test_backprop_aligns_with_itself(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    report = alignment(built, case.x, case.y, rule="backprop")
    assert (report.rule, report.labels, report.examples) == ("backprop", "given", 24)
    assert [layer.module for layer in report.layers] == ["first", "second", "head"]
    for layer in report.layers:
        assert layer.cosine == pytest.approx(1, abs=1e-12)
        assert layer.norm_ratio == pytest.approx(1, abs=1e-12)
    assert not report.warnings()


@pytest.mark.parametrize("labels", ["given", "drawn"])
def test_one_hidden_layer_is_aligned_up_to_int8_feedback(lab, one_hidden, labels):
    # Rounding M to 1/127 of its rows' largest entries moves it by less than 1/127 of its norm.
    case = lab.case("mlp")
    report = alignment(one_hidden, case.x, case.y if labels == "given" else None)
    assert report.labels.startswith(labels)
    site, head = report.layers
    assert 1 - 1e-4 < site.cosine <= 1
    assert site.norm_ratio == pytest.approx(1, abs=1 / 127)
    assert head.cosine == pytest.approx(1, abs=1e-6)


def test_negated_feedback_has_cosine_minus_one_and_is_warned_of_by_layer(lab, one_hidden):
    case = lab.case("mlp")
    negated = {k: -v if k.endswith("feedback.scale") else v for k, v in one_hidden.frozen.items()}
    report = alignment(replace(one_hidden, frozen=negated), case.x, case.y)
    straight = by_module(alignment(one_hidden, case.x, case.y))
    found = by_module(report)
    assert found["0"].cosine == pytest.approx(-straight["0"].cosine, abs=1e-9)
    (warning,) = report.warnings()
    assert warning.startswith("0: the dfa gradient has cosine -1.00")
    for remedy in ("block_size='auto'", "Calibrate again", "target_modules", "rule='backprop'"):
        assert remedy in warning
    assert report.lowest == found["0"].cosine


@pytest.mark.parametrize(
    ("name", "options", "expected", "unfit"),
    [
        ("mlp", {"feedback": "random"}, "feedback='calibrated'", "feedback_positions"),
        ("conv1d", {}, "feedback_positions='each'", "feedback='calibrated'"),
        ("conv1d", {"feedback_positions": "each"}, "Calibrate again", "feedback_positions"),
        ("mlp", {"block_size": 2}, "block_size, or block_size='auto'", "block_budget"),
        ("mlp", {"block_size": "auto"}, "a larger block_budget", "block_size="),
        ("mlp", {"rule": "local_losses"}, "Use rule='dfa'", "block_size"),
    ],
)
def test_the_remedy_fits_the_layer(lab, name, options, expected, unfit):
    built = lab.build(lab.case(name), **options)
    first = built.step.learner.sites[0].module
    remedy = by_module(alignment(built, lab.case(name).x[:4]))[first].remedy
    assert expected in remedy
    assert unfit not in remedy
    assert "rule='backprop'" in remedy


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ("query", "value")}, "through the softmax: attention='local'"),
        ({"attention": "local"}, "leave queries and keys out: attention='skip'"),
    ],
)
def test_queries_and_keys_have_a_remedy_of_their_own(lab, options, expected):
    built = lab.build(lab.case("vit"), **options)
    found = by_module(alignment(built, lab.case("vit").x[:4]))
    assert expected in found["block.attention.query"].remedy
    assert "attention=" not in found["block.attention.value"].remedy


def test_a_gradient_of_zero_has_no_cosine(lab):
    """A head of zero passes nothing down."""
    case = lab.case("mlp")
    built = lab.built("mlp")
    adapter = {
        k: torch.zeros_like(v) if k == "head.weight" else v for k, v in built.adapter.items()
    }
    report = alignment(built, case.x, case.y, adapter=adapter)
    found = by_module(report)
    assert (found["first"].cosine, found["first"].norm_ratio) == (None, None)
    assert found["head"].cosine == pytest.approx(1, abs=1e-6)
    assert "first" not in {layer.module for layer in report.below}


def test_feedback_grows_stale_as_the_adapter_moves(lab):
    case = lab.case("mlp")
    built = lab.built("mlp")
    far = {
        k: v + torch.randn(v.shape, generator=torch.Generator().manual_seed(0)) if "lora" in k
        else v for k, v in built.adapter.items()
    }  # fmt: skip
    start = by_module(alignment(built, case.x, case.y))
    moved = by_module(alignment(built, case.x, case.y, adapter=far))
    assert moved["first"].cosine < start["first"].cosine - 0.1


@pytest.mark.parametrize("name", ["vit_gpt", "residual_cnn", "shared"])
@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
def test_every_adapted_layer_has_an_entry(lab, name, base_dtype):
    case, built = lab.case(name), lab.built(name, base_dtype=base_dtype)
    report = alignment(built, case.x)
    modules = {site.module for site in built.step.learner.sites}
    assert {layer.module for layer in report.layers} == modules | {"head"}
    assert all(math.isfinite(layer.cosine) for layer in report.layers)


def test_regression_draws_targets_around_the_output(lab):
    """One hidden layer is aligned under any targets; the draws are those of unit noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    case = replace(lab.case("mlp"), model=model)
    built = lab.build(case, task="regression")
    drawn = alignment(built, case.x)
    assert drawn.layers[0].cosine > 1 - 1e-4  # but for int8 feedback, as with given labels
    assert drawn.layers[1].cosine == pytest.approx(1, abs=1e-6)
    assert drawn != alignment(built, case.x, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        noise = _drawn(built, case.x, generator) - model(case.x)
    # 120 normal numbers: mean 0 and variance 1, with deviations of .09 and .13.
    assert abs(float(noise.mean())) < 4 * 0.09
    assert abs(float(noise.var()) - 1) < 4 * 0.13


def test_classes_are_drawn_as_often_as_the_base_predicts_them(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    x = case.x[:1].expand(4000, -1)
    with torch.no_grad():
        expected = case.model(x[:1]).softmax(1)[0]
        drawn = _drawn(built, x, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()
    assert not ((shares - expected.flip(0)).abs() < 0.03).all()  # another order would be noticed


def test_labels_must_fit_the_examples(lab):
    case, built = lab.case("mlp"), lab.built("mlp")
    with pytest.raises(CalibrationError, match="24 examples and 3 labels"):
        alignment(built, case.x, case.y[:3])
    with pytest.raises(CalibrationError, match="0 examples and no labels"):
        alignment(built, case.x[:0])
