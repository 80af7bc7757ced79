"""Refreshed feedback: what it is, and that devices learn by it as if compiled with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.batches import Batch
from rootlet_runtime.feedback_part import open_part
from rootlet_server.compiler import CalibrationError, CompileConfig, LoraConfig, compile_bundle
from rootlet_server.compiler.feedback_forms import feedback_matrix
from rootlet_server.compiler.jacobians import mean_jacobians
from rootlet_server.compiler.refresh import refresh_part, refreshed_feedback

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CONFIG = CompileConfig(rule="dfa", adapter=LoraConfig(rank=4), base_dtype="float32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A compiled model, its verified bundle, a moved adapter, its feedback and the part."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 5)
    )
    x = torch.randn(24, 12)
    path = tmp_path_factory.mktemp("refresh") / "small.rootlet"
    compiled = compile_bundle(
        model, calibration_x=x, config=CONFIG, name="small", version=1, signing_key=KEY, out=path
    )
    bundle = Bundle.load(path, trusted_keys=[KEY.public_key()])
    generator = torch.Generator().manual_seed(1)
    adapter = {
        name: value + 0.5 * torch.randn(value.shape, generator=generator)
        for name, value in compiled.built.adapter.items()
    }
    fresh = refreshed_feedback(compiled.built, adapter, x, CONFIG)
    part = refresh_part(compiled.built, bundle, fresh, version=3, signing_key=KEY)
    return compiled.built, bundle, x, adapter, fresh, part


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_the_refreshed_matrix_is_the_mean_jacobian_at_the_adapter(made):
    built, _, x, adapter, fresh, _ = made
    learner = built.step.learner
    points = {s.chain.point: s.adapted_rows for s in learner.sites}
    found = mean_jacobians(learner, built.frozen, adapter, x, points)
    for site in learner.sites:
        expected = found[site.chain.point].sum(1)
        assert relative(feedback_matrix(site.node, fresh, torch.float32), expected) < 0.01  # int8
        old = feedback_matrix(site.node, built.frozen, torch.float32)
        assert relative(old, expected) > 0.1


def step_of(trainer, x, y):
    """The adapter after one step of rate 0.1 from the bundle's start, through the engine."""
    trainer.load_adapter(trainer.bundle.initial_adapter())
    trainer._engine.step(Batch(x, y, np.ones(len(x), np.float32), len(x)), 0.1)
    return trainer.adapter


def test_a_device_steps_as_if_it_had_been_compiled_with_the_refreshed_feedback(made):
    built, bundle, x, _, fresh, part = made
    y = torch.arange(len(x)) % 5
    trainer = Trainer(bundle)
    before = step_of(trainer, x.numpy(), y.numpy())
    trainer.load_feedback(open_part(part, bundle))
    after = step_of(trainer, x.numpy(), y.numpy())
    with torch.no_grad():
        old, new = (
            built.step.train(
                frozen, built.adapter, {}, x, y, torch.ones(len(x)), torch.tensor(0.1)
            )[2]
            for frozen in (built.frozen, built.frozen | fresh)
        )
    for name in new:
        start = built.adapter[name]
        for found, expected in ((before, old), (after, new)):
            moved = torch.from_numpy(found[name]) - start
            assert (
                relative(moved, expected[name] - start) < 1e-4
            )  # float32, as in test_export_parity
    changed = [n for n in new if not np.allclose(before[n], after[n], atol=1e-6)]
    assert sorted(changed) == ["0.lora_B", "2.lora_B"]  # the head's gradient is its own


def test_a_rule_without_calibrated_feedback_has_nothing_to_refresh(made):
    built, _, x, adapter, *_ = made
    bare = {name: value for name, value in built.frozen.items() if "feedback" not in name}
    with pytest.raises(CalibrationError, match="nothing to refresh"):
        refreshed_feedback(replace(built, frozen=bare), adapter, x, CONFIG)
