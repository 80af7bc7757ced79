"""What devices learned goes back, and only what is not worse goes out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from rootlet_runtime import Bundle, generate_keypair
from rootlet_server.compiler import CompileConfig, LoraConfig, build
from rootlet_server.training.distill import distillation_loss
from rootlet_server.training.errors import (
    AlignmentError,
    FullTrainingConfigError,
    FullTrainingError,
    MergeError,
)
from rootlet_server.training.merge import merge_adapter
from rootlet_server.training.release import alignment_path, judge, release, release_next

FLOAT = CompileConfig(base_dtype="float32", adapter=LoraConfig(rank=4))


def dense():
    return nn.Sequential(
        nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
    )


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.encoder(x.view(-1, 8, 8)).mean(1))


def moved(built, size: float = 0.1):
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + size * torch.randn(value.shape, generator=generator)
        for name, value in built.adapter.items()
    }


@pytest.mark.parametrize("make", [dense, convolutional, Attentive])
@pytest.mark.parametrize("kind", ["calibrated", "lora"])
def test_the_merged_base_computes_what_the_adapted_one_computes(make, kind, nets):
    torch.manual_seed(0)
    model, x = make().eval(), nets.digits().train.x[:32]
    config = CompileConfig(base_dtype="float32", adapter=LoraConfig(rank=4, kind=kind))
    built = build(model, x, config)
    adapter = moved(built)
    merged = merge_adapter(model, built, adapter)
    with torch.no_grad():
        expected = built.step.learner.forward(built.frozen, adapter, x).output
        # Some hundred float32 terms an output in another order: 100 * 2^-24 of their size.
        torch.testing.assert_close(
            merged(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )
        assert not torch.allclose(model(x), expected, atol=1e-2)  # and the base was left alone


def test_int8_adapters_merge_as_devices_multiply_them(nets):
    torch.manual_seed(0)
    model, x = dense().eval(), nets.digits().train.x[:32]
    built = build(model, x, CompileConfig(adapter=LoraConfig(rank=4)))
    change = merge_adapter(model, built, moved(built))[0].weight - model[0].weight
    a = built.frozen["0.lora_A:linear.q"].float() * built.frozen["0.lora_A:linear.scale"]
    expected = 2 * moved(built)["0.lora_B"] @ a.t()
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)


def test_a_foreign_adapter_is_refused(nets):
    model, x = dense(), nets.digits().train.x[:32]
    built = build(model, x, FLOAT)
    adapter = moved(built)
    with pytest.raises(MergeError, match=r"0\.lora_B has shape None"):
        merge_adapter(model, built, {k: v for k, v in adapter.items() if k != "0.lora_B"})
    with pytest.raises(MergeError, match="NaN"):
        merge_adapter(model, built, adapter | {"0.lora_B": adapter["0.lora_B"] * np.nan})
    with pytest.raises(MergeError, match="no parameter '0\\.weight'"):
        merge_adapter(nn.ModuleDict({"a": model}), built, adapter)


def test_the_gate_by_hand():
    errors = np.array([0, 0, 1, 1, 0, 0, 0, 0], float)
    same, better, worse = errors, np.zeros(8), errors + np.eye(8)[0]
    assert judge(errors, same).published
    assert judge(errors, better).after == 0.0
    verdict = judge(errors, worse)
    assert (verdict.published, verdict.before, verdict.after) == (False, 0.25, 0.375)
    assert "worse by more than 0" in verdict.reason
    assert judge(errors, worse, largest_rise=0.125).published
    assert not judge(errors, np.where(errors > 0, np.inf, 0)).published
    with pytest.raises(FullTrainingError, match="8 and 0 errors"):
        judge(errors, np.zeros(0))


@pytest.mark.slow
def test_a_worse_base_is_not_published_and_a_better_one_is(nets, tmp_path):
    torch.manual_seed(0)
    model, data, (key, _) = dense().eval(), nets.digits(), generate_keypair()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = data.train.x, data.train.y
    config = CompileConfig(adapter=LoraConfig(rank=4))

    def learn(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    learn(20)
    made = release(
        model, calibration_x=x[:64], config=config, name="digits", version=1, signing_key=key,
        out=tmp_path / "digits-1.rootlet",
    )  # fmt: skip
    report = json.loads(alignment_path(made.compiled.path).read_text())
    assert [layer["module"] for layer in report["layers"]] == ["0", "2", "4"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits-1.rootlet", "digits-1.rootlet.alignment.json",
    }  # fmt: skip
    held_out = (data.held_out.x.numpy(), data.held_out.y.numpy())
    common = {
        "former": made.compiled.path,
        "held_out": held_out,
        "calibration_x": x[:64],
        "config": config,
        "signing_key": key,
        "out": tmp_path / "digits-2.rootlet",
    }
    torch.manual_seed(1)
    verdict, _ = release_next(dense(), **common)
    assert not verdict.published
    assert not common["out"].exists()
    learn(40)
    verdict, made = release_next(model, **common)
    assert verdict.published
    assert verdict.after < verdict.before
    assert made.compiled.path == common["out"]
    with Bundle.load(common["out"], trusted_keys=[key.public_key()]) as bundle:
        assert bundle.manifest.version == 2


def test_feedback_that_points_elsewhere_is_not_published(nets, tmp_path):
    torch.manual_seed(0)
    key, _ = generate_keypair()
    with pytest.raises(AlignmentError, match="below the floor"):
        release(
            dense(), calibration_x=nets.digits().train.x[:32], name="digits", version=1,
            config=CompileConfig(feedback="random", adapter=LoraConfig(rank=4)), signing_key=key,
            out=tmp_path / "digits.rootlet", floor=0.9,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_distillation_is_what_its_formula_says():
    teacher = nn.Linear(2, 3, bias=False)
    teacher.weight.data = torch.eye(3)[:, :2] * 2
    x, z, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([2])
    loss = distillation_loss(teacher, "classification", weight=0.25, temperature=2.0)
    t = torch.tensor([1.0, 0.0, 0.0]).softmax(0)  # the teacher's (2, 0, 0) over 2
    s = torch.tensor([0.0, 0.5, 0.0]).softmax(0)
    expected = 0.75 * -z[0].softmax(0)[2].log() + 0.25 * 4 * (t * (t / s).log()).sum()
    torch.testing.assert_close(loss(x, z, y), expected.unsqueeze(0))
    assert float(distillation_loss(teacher, "classification", weight=1.0)(x, teacher(x), y)) < 1e-6
    with pytest.raises(FullTrainingConfigError, match="temperature=0"):
        distillation_loss(teacher, "classification", temperature=0)
