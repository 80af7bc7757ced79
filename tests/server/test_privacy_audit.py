"""A one-run audit of private training (Steinke, Nasr & Jagielski 2023), with negative controls.

Every feature is one canary's own: an example that holds 10 there and nothing else. A fair coin
decides for each whether it takes part, and afterwards the adapter is asked who did. From the number
of right guesses follows an epsilon that the mechanism has at least. The right code must stay below
what it claims. Code without noise, with the noise of a mean on a sum, without clipping, or with the
batch clipped as a whole must be found out. (Noise that is half as large, or used twice, passes such
an audit: ``test_noise.py`` and ``test_private_fit.py`` notice those.)
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rootlet_runtime import Bundle, PrivateTraining, Trainer, private_fit
from rootlet_runtime.schedule import CONSTANT
from rootlet_server.compiler import CompileConfig, PrivacyConfig, compile_bundle
from rootlet_server.privacy import noise_multiplier_for

CANARIES, STEPS, CLAIMED, DELTA = 1500, 20, 3.0, 1e-5
GUESSES = (50, 100, 200, 400)
BOUND, RATE = 1.0, 1e-3


def p_value(guesses, right, epsilon):
    """Of at least ``right`` guesses of ``guesses`` under (epsilon, DELTA); their theorem 5.2."""
    chance = 1 / (1 + np.exp(-epsilon))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    alpha = (below / np.arange(1, right + 1)).max() if right else 0.0
    tail = binom.sf(right - 1, guesses, chance)
    return min(1.0, tail + 2 * CANARIES * DELTA * alpha)


def audited(score, took_part):
    """An epsilon that the mechanism has at least, with 95 % confidence."""
    order, best = np.argsort(-score), 0.0
    for guesses in GUESSES:
        inside, outside = order[: guesses // 2], order[-guesses // 2 :]
        right = int(took_part[inside].sum() + (~took_part[outside]).sum())
        for epsilon in np.arange(0.0, 8.0, 0.05):
            if p_value(guesses, right, epsilon) < 0.05 / len(GUESSES):
                best = max(best, epsilon)
    return best


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "head.rootlet"
    model = torch.nn.Sequential(torch.nn.Linear(CANARIES, 2))
    torch.nn.init.zeros_(model[0].weight)
    compile_bundle(
        model,
        calibration_x=torch.eye(CANARIES)[:4],
        config=CompileConfig(rule="head_only", privacy=PrivacyConfig()),
        name="head",
        version=1,
        signing_key=None,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[], allow_unsigned=True)


@pytest.fixture(scope="module")
def noise_multiplier():
    return noise_multiplier_for(CLAIMED, DELTA, sample_rate=1.0, steps=STEPS)


def audit(trainer, noise_multiplier):
    """Train on the canaries that take part; what the adapter gives away about who they are."""
    took_part = np.random.default_rng(0).random(CANARIES) < 0.5
    x = 10 * np.eye(CANARIES, dtype=np.float32)[took_part]
    (weight,) = (name for name in trainer.adapter if name.endswith("weight"))
    before = trainer.adapter[weight]
    trainer.fit_private(
        x,
        np.ones(len(x), np.int64),
        privacy=PrivateTraining(
            max_grad_norm=BOUND, noise_multiplier=noise_multiplier, sample_rate=1.0
        ),
        epochs=STEPS,
        learning_rate=RATE,
        schedule=CONSTANT,
    )
    moved = before - trainer.adapter[weight]
    return audited(moved[0] - moved[1], took_part)


def test_the_right_code_stays_below_its_claim(bundle, noise_multiplier):
    assert audit(Trainer(bundle), noise_multiplier) < CLAIMED


def test_no_noise_is_found_out(bundle, noise_multiplier, monkeypatch):
    monkeypatch.setattr(private_fit, "discrete_gaussian", lambda n, _: np.zeros(n, np.int64))
    assert audit(Trainer(bundle), noise_multiplier) > CLAIMED


def test_the_noise_of_a_mean_on_a_sum_is_found_out(bundle, noise_multiplier, monkeypatch):
    right = private_fit.noise_std
    monkeypatch.setattr(private_fit, "noise_std", lambda *args: right(*args) / (CANARIES / 2))
    assert audit(Trainer(bundle), noise_multiplier) > CLAIMED


@pytest.mark.parametrize("batch_clipping", [False, True])
def test_no_clipping_and_batch_clipping_are_found_out(bundle, noise_multiplier, batch_clipping):
    trainer = Trainer(bundle)
    engine = trainer._engine
    right = engine.gradients

    def wrong(batch, bound):
        found = right(batch, 1e6)
        sums = {k: v for k, v in found.items() if k.startswith("grads/")}
        length = np.sqrt(sum(float((v**2).sum()) for v in sums.values()))
        factor = min(1.0, bound * batch.examples / length) if batch_clipping else 1.0
        return found | {k: factor * v for k, v in sums.items()}

    engine.gradients = wrong
    assert audit(trainer, noise_multiplier) > CLAIMED
