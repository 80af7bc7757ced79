"""Diagnostics against what is known by hand, and the report that shows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rootlet_server.training import Arrays, TrainingData, train
from rootlet_server.training.diagnostics import (
    calibration_error,
    diagnose,
    gradient_norms,
    noise_scale,
)
from rootlet_server.training.events import Evaluated, EventFile, Stepped, read_events
from rootlet_server.training.report import write_report


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.35, 0.35], dtype=torch.float64)
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    error, bins = calibration_error(confidence, right)
    assert error == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.15)
    assert [b.examples for b in bins] == [2, 4]


def line(examples: int, noise: float):
    """y = 2 x + noise, and a model at w = 0: dL/dw_n = -2 x_n y_n."""
    torch.manual_seed(0)
    x = torch.randn(examples, 1)
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    return model, Arrays.of(x, 2 * x + noise * torch.randn(examples, 1))


def test_sharpness_and_norms_of_a_line_are_known():
    model, data = line(256, 0.0)
    found = diagnose(model, TrainingData(train=data), "regression")
    square = float(data.x.square().mean())
    assert found.sharpness == pytest.approx(2 * square, rel=1e-4)  # d2/dw2 of (2x - wx)^2
    assert gradient_norms(model, "regression", data.x, data.y)[""] == pytest.approx(
        4 * square, rel=1e-4
    )
    assert found.calibration_error is None


def test_the_noise_scale_is_that_of_the_examples():
    """tr(Sigma) / |G|^2 of all examples, which 16 pairs of batches estimate within a half."""
    model, data = line(4096, 3.0)
    each = (-2 * data.x * data.y).flatten()
    exact = float(each.var() / each.mean() ** 2)
    assert noise_scale(model, "regression", data, seed=0) == pytest.approx(exact, rel=0.5)
    _, quiet = line(4096, 0.0)
    louder = noise_scale(model, "regression", data, 0)
    assert louder > 1.5 * noise_scale(model, "regression", quiet, 0)


def test_a_report_shows_the_run(nets, tmp_path):
    model, data = nets.residual(), nets.digits()
    trained = train(model, data, nets.config(training={"log_every": 2}), out=tmp_path)
    found = diagnose(trained.model, data, "classification")
    assert found.metric == pytest.approx(trained.metric)
    assert set(found.gradient_norms) >= {"embedding", "layers.0.inner", "head"}
    png, page = write_report(tmp_path, found, title="a <run>")
    assert png.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert "a &lt;run&gt;" in html
    assert "sharpness" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_a_resumed_run_repeats_no_event(tmp_path):
    step = {"steps": 9, "epoch": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": None,
            "examples_per_s": 1.0}  # fmt: skip
    log = EventFile(tmp_path, after=0)
    for number in (2, 4, 6):
        log.write(Stepped(step=number, **step))
    log.close()
    path = tmp_path / "events.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "cut o')
    log = EventFile(tmp_path, after=4)
    log.write(Evaluated(step=6, loss=1.0, metric=0.5))
    log.close()
    assert [(e["event"], e["step"]) for e in read_events(tmp_path)] == [
        ("Stepped", 2), ("Stepped", 4), ("Evaluated", 6),
    ]  # fmt: skip
