"""Private training: clipped sums against a loop over examples, and what is spent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rootlet.ledger import read
from rootlet_server.privacy import epsilon
from rootlet_server.privacy.accounting import AccountingError
from rootlet_server.privacy.charges import KIND, charge, charged
from rootlet_server.training import CentralPrivacy, FullTrainingConfig, OptimizerConfig, train
from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.private import _clipping, planned_spending

SGD = OptimizerConfig(name="sgd", learning_rate=0.3)


def private(**changes) -> FullTrainingConfig:
    settings = {"epochs": 4, "batch_size": 50, "optimizer": SGD}
    settings["privacy"] = CentralPrivacy(noise_multiplier=1.0, max_grad_norm=0.5)
    return FullTrainingConfig(**settings | changes)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 10),
    )  # fmt: skip


def test_clipped_sums_are_those_of_one_example_at_a_time(nets):
    model, data, config = convolutional(), nets.digits(), private()
    x, y = data.train.x[:20], data.train.y[:20]
    spent = planned_spending(config, len(data.train))
    with _clipping(model, spent, config) as step:
        found = step.clipped_sums((x, y))
        empty = step.clipped_sums(None)
    expected = {name: np.zeros(tuple(p.shape)) for name, p in model.named_parameters()}
    clipped = 0
    for n in range(20):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
        norm = float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5)
        clipped += norm > 0.5
        for name, p in model.named_parameters():
            expected[name] += min(1.0, 0.5 / norm) * p.grad.numpy()
    assert clipped
    for name, total in expected.items():
        # Opacus divides by the norm plus 1e-6; the rest is the order of float32 sums.
        np.testing.assert_allclose(found[name], total, atol=2e-5)
        assert not empty[name].any()
    assert all(not module._forward_hooks and not module._backward_hooks for module in model)


def test_the_noise_is_what_was_asked_for_and_not_a_tenth_more(nets):
    """With gradients of zero a step releases its noise alone: sigma C / b per weight.

    The variance of 21,600 draws has a relative standard error of sqrt(2 / 21600) = 1 %.
    """
    model, config = nn.Linear(64, 10), private()
    spent = planned_spending(config, 400)
    model.weight.data.zero_()
    with _clipping(model, spent, config) as step:
        drawn = []
        for _ in range(34):
            before = model.weight.detach().clone()
            step(None, 1.0, 1)
            optimizer = step._optimizer
            optimizer.state.clear()  # momentum would add up the noise of earlier steps
            drawn.append((model.weight.detach() - before).flatten())
    noise = torch.cat(drawn) / 0.3 * 50  # back from the rate and the expected batch
    assert float(noise.var()) == pytest.approx(0.25, rel=0.05)
    assert float(noise.var()) != pytest.approx(0.25 * 1.1**2, rel=0.05)
    assert abs(float(noise.mean())) < 5 * 0.5 / len(noise) ** 0.5


def test_it_learns_and_spends_its_budget(nets):
    torch.manual_seed(0)
    data = nets.digits()
    config = private(epochs=10, privacy=CentralPrivacy(target_epsilon=8.0))
    trained = train(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), data, config)
    assert trained.steps == trained.spent.steps == 80
    assert trained.spent.sample_rate == 50 / 400
    assert 7.9 < epsilon([trained.spent], 1e-5) <= 8.0
    assert trained.metric > 0.4  # a constant answer is right in 0.1


def test_what_couples_examples_is_refused(nets):
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(FullTrainingConfigError, match=r"1: BatchNorm1d couples the examples"):
        train(model, nets.digits(), private())
    with pytest.raises(FullTrainingConfigError, match="batch_size=1000, examples=400"):
        train(nn.Linear(64, 10), nets.digits(), private(batch_size=1000))


def test_runs_are_charged_before_they_begin_and_refused_beyond_the_budget(nets, tmp_path):
    ledger = str(tmp_path / "digits")
    privacy = CentralPrivacy(noise_multiplier=1.5, ledger=ledger)
    once = planned_spending(private(privacy=privacy), len(nets.digits().train))
    alone, twice = epsilon([once], 1e-5), epsilon([once, once], 1e-5)
    train(convolutional(), nets.digits(), private(privacy=privacy))
    entry = read(tmp_path / "digits")[-1]
    assert (entry.kind, entry.fields["delta"]) == (KIND, 1e-5)
    assert entry.fields["epsilon_of_all"] == pytest.approx(alone)
    assert charged(tmp_path / "digits") == [once]
    tight = replace(privacy, budget_epsilon=(alone + twice) / 2)
    model = convolutional()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(AccountingError, match="were spent by 1 earlier runs"):
        train(model, nets.digits(), private(privacy=tight))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert charged(tmp_path / "digits") == [once]
    assert (
        charge(tmp_path / "digits", once, delta=1e-5, budget_epsilon=1.01 * twice) <= 1.01 * twice
    )


def test_a_budget_needs_a_ledger():
    with pytest.raises(FullTrainingConfigError, match=r"give privacy\.ledger a folder"):
        CentralPrivacy(noise_multiplier=1.0, budget_epsilon=3.0)
