"""The floor: the head learns by its exact gradient, and the base carries nothing."""

from __future__ import annotations

import pytest
import torch

from rootlet_server import compile_bundle


@pytest.mark.parametrize("name", ["mlp", "residual_cnn", "vit"])
def test_only_the_head_is_in_the_adapter_and_it_learns_as_in_backprop(lab, name):
    case, built = lab.case(name), lab.built(name, rule="head_only")
    assert built.step.learner.sites == ()
    assert built.adapter.keys() == {"head.weight", "head.bias"}
    assert not [key for key in built.frozen if "feedback" in key or "lora" in key]
    found = lab.gradients(built, "head_only", case.x, case.y, double=True)
    expected = lab.gradients(lab.built(name), "backprop", case.x, case.y, double=True)
    for key in built.adapter:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-14)


def test_a_bundle_of_the_head_alone(lab, tmp_path):
    case = lab.case("residual_cnn")
    compiled = compile_bundle(
        case.model, calibration_x=case.x, config=lab.config(rule="head_only", base_dtype="int8"),
        name="floor", version=1, signing_key=None, out=tmp_path / "floor.rootlet",
    )  # fmt: skip
    manifest = compiled.manifest
    assert (manifest.rule, manifest.adapter_kind, manifest.feedback) == ("head_only", "head", None)
    assert [spec.name for spec in manifest.adapter] == ["head.weight", "head.bias"]
    assert compiled.worst_disagreement < 1e-4
    assert compiled.alignment is None
