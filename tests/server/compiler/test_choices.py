"""What ``compile_bundle`` says: what it chose, how well its gradients point, and what to do."""

from __future__ import annotations

import pytest
import torch

from rootlet_server.compiler import compile_bundle
from rootlet_server.compiler.choices import alignment_line, choices
from rootlet_server.compiler.compile import _aligned


def test_random_feedback_is_warned_of_by_layer(lab, tmp_path):
    case, said = lab.case("mlp"), []
    bundle = compile_bundle(
        case.model, calibration_x=case.x, config=lab.config(feedback="random"), name="said",
        version=1, signing_key=None, out=tmp_path / "said.rootlet", progress=said.append,
    )  # fmt: skip
    warnings = [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]
    assert tuple(warnings) == bundle.alignment.warnings()
    assert [line.partition(":")[0] for line in warnings] == ["first", "second"]
    assert all("feedback='calibrated'" in line for line in warnings)
    assert bundle.choices == choices(bundle.built)
    assert [line for line in said if line in bundle.choices] == list(bundle.choices)
    assert alignment_line(bundle.alignment) in said
    assert f": first {bundle.alignment.layers[0].cosine:.2f}, second" in "".join(said)


def test_calibrated_feedback_is_not_warned_of(lab):
    report = _aligned(lab.built("mlp"), lab.case("mlp").x, lab.config())
    assert report.warnings() == ()
    assert report.examples == 24


@pytest.mark.parametrize("rule", ["backprop", "head_only", "zeroth_order"])
def test_a_rule_that_is_exact_on_average_is_not_measured(lab, rule):
    built = lab.built("mlp", rule=rule)
    assert _aligned(built, lab.case("mlp").x, lab.config(rule=rule)) is None


def test_noise_keeps_the_alignment_off_the_data(lab):
    """Of the data only shape, dtype and range: shuffled values give the same report."""
    x, config = lab.case("mlp").x, lab.config(calibration="noise")
    built = lab.built("mlp", calibration="noise")
    shuffled = x.flatten()[torch.randperm(x.numel())].view_as(x)
    found = _aligned(built, x, config)
    assert found == _aligned(built, shuffled, config)
    assert found != _aligned(built, x, lab.config())


def test_each_choice_is_one_line(lab):
    built = lab.build(lab.case("residual_cnn"), base_dtype="int8", block_size="all")
    ranks, left_out, precision, blocks = choices(built)
    first = built.ranks[0]
    assert ranks.startswith(f"ranks: stem {first.rank} ({100 * first.explained:.1f} % of")
    assert left_out.startswith("without an adapter: depthwise (a grouped or depthwise")
    assert precision.startswith("precision: int8 (stored; computed in float): stem.weight, ")
    assert blocks == "blocks: stem+expand+project+squeeze+excite+mix"


def test_chosen_blocks_say_what_they_cost(lab):
    built = lab.built("vit", block_size="auto")
    line = choices(built)[-1]
    assert line.startswith("blocks: patch | block.attention.value | ")
    assert f"; {built.blocks.time:.2f} of backprop's multiply-accumulates" in line


def test_a_mixed_base_says_the_dtype_of_every_layer(lab):
    built = lab.build(lab.case("vit"), base_dtype="mixed")
    (line,) = (line for line in choices(built) if line.startswith("precision: "))
    for layer in built.precision:
        assert layer.tensor in line
        assert layer.chosen in line


def test_int4_says_which_layers_it_cannot_hold(lab):
    built = lab.build(lab.case("vit"), base_dtype="int4")
    (line,) = (line for line in choices(built) if line.startswith("precision: "))
    assert "int4: block.down.weight" in line
    assert "int8 (its inputs are no multiple of 32): block.attention.query.weight" in line


def test_a_float_base_without_blocks_chose_ranks_only(lab):
    assert [line.partition(":")[0] for line in choices(lab.built("mlp"))] == ["ranks"]
