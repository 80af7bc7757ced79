"""Models at the edge of what is accepted, and what compiling leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rootlet_server.compiler import CompileConfig, compile_bundle
from rootlet_server.compiler.decompositions import export_decompositions


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_is_left_as_it_was(lab, training):
    model = lab.case("vit_mha").model.train(training)
    model.patch.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {k: p.requires_grad for k, p in model.named_parameters()}
    kinds = [type(m) for m in model.modules()]
    lab.build(replace(lab.case("vit"), model=model), base_dtype="int8")
    assert model.training is training
    assert {k: p.requires_grad for k, p in model.named_parameters()} == grads
    assert [type(m) for m in model.modules()] == kinds
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_compiled_in_float32(lab, dtype):
    case = lab.case("residual_cnn")
    model = copy.deepcopy(case.model).to(dtype)
    built = lab.build(replace(case, model=model), rank=2)
    assert {v.dtype for v in built.adapter.values()} == {torch.float32}
    assert not any(v.dtype in (torch.float16, torch.bfloat16) for v in built.frozen.values())
    with torch.no_grad():
        found = built.step.learner.forward(built.frozen, built.adapter, case.x).output
        expected = model.float()(case.x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["dfa", "backprop"])
def test_a_head_alone(tmp_path, rule):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    compiled = compile_bundle(
        model,
        calibration_x=torch.randn(8, 3, 4),
        config=CompileConfig(rule=rule),
        name="head",
        version=1,
        signing_key=None,
        out=tmp_path / "head.rootlet",
    )
    assert [spec.name for spec in compiled.manifest.adapter] == ["1.weight", "1.bias"]
    assert compiled.worst_disagreement < 1e-5


def test_uint8_images(tmp_path, lab):
    case = lab.case("uint8_cnn")
    compiled = compile_bundle(
        case.model, calibration_x=case.x.numpy(), name="images", version=1, signing_key=None,
        out=tmp_path / "images.rootlet",
    )  # fmt: skip
    assert (compiled.manifest.x.dtype, compiled.manifest.x.shape) == ("uint8", (None, 3, 6, 6))


def test_float64_calibration_data_is_taken_as_float32(lab):
    case = lab.case("mlp")
    built = lab.build(replace(case, x=case.x.double().numpy()))
    assert built.example.dtype == torch.float32


def test_a_channel_count_that_equals_a_batch_size(lab):
    """Sizes that tracing could take for the batch: 2 to 8 channels, at batches of 2 to 8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 6))
    case = replace(lab.case("mlp"), model=model, x=torch.randn(8, 3))
    for rule in ("dfa", "backprop"):
        built = lab.build(case, rule=rule)
        engine = lab.engine(built, "train")
        for size in range(1, 9):
            x, y, w = case.x[:size], torch.arange(size) % 6, torch.ones(size)
            rate = torch.tensor(0.1)
            adapter = {f"adapter/{k}": v for k, v in built.adapter.items()}
            found = engine({"x": x, "y": y, "w": w, "learning_rate": rate, **adapter})
            with torch.no_grad():
                _, _, moved, _ = built.step.train(built.frozen, built.adapter, {}, x, y, w, rate)
            for key, value in moved.items():
                torch.testing.assert_close(found[f"next/adapter/{key}"], value)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "options"),
    [
        (2, None, 0, {}),
        (3, 2, 1, {}),
        (3, 2, 1, {"count_include_pad": False}),
        (3, 2, 0, {"ceil_mode": True}),
        ((3, 2), (2, 1), (1, 0), {"divisor_override": 5}),
    ],
)
def test_the_derivative_of_average_pooling(kernel, stride, padding, options):
    pool = nn.AvgPool2d(kernel, stride, padding, **options)
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64, requires_grad=True)
    out = pool(x)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, grad)

    def pair(value):
        return [value, value] if isinstance(value, int) else list(value or ())

    decomposed = export_decompositions()[torch.ops.aten.avg_pool2d_backward.default]
    found = decomposed(
        grad, x.detach(), pair(kernel), pair(stride), pair(padding),
        pool.ceil_mode, pool.count_include_pad, pool.divisor_override,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("out", [1, 2, 3, (8, 5)])
def test_adaptive_pooling_to_any_size(lab, out):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(out), nn.Flatten())
    features = model(torch.zeros(1, 1, 8, 7)).shape[1]
    model.append(nn.Linear(features, 5))
    case = replace(lab.case("mlp"), model=model.eval(), x=torch.randn(8, 1, 8, 7))
    built = lab.build(case)
    with torch.no_grad():
        found = built.step.learner.forward(built.frozen, built.adapter, case.x).output
        torch.testing.assert_close(found, model(case.x))
