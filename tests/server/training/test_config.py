"""Impossible configurations are named before anything runs."""

from __future__ import annotations

import pytest

from rootlet_server.training import (
    CentralPrivacy,
    EngineConfig,
    FullTrainingConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from rootlet_server.training.errors import FullTrainingConfigError
from rootlet_server.training.recipe import make_config, read_recipe

WHOLE = 'out = "run"\n[model]\nfactory = "a:b"\n[data]\ntrain = "train.npz"\n'


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: OptimizerConfig(name="sdg"), "optimizer.name='sdg'"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), "optimizer.learning_rate=nan"),
        (lambda: OptimizerConfig(name="lbfgs", weight_decay=0.1), "weight_decay"),
        (lambda: OptimizerConfig(name="sophia", sam_rho=0.1), "sam_rho"),
        (lambda: ScheduleConfig(decay="one_cycle", warmup=0), "schedule.warmup=0"),
        (lambda: EngineConfig(processes=2), "strategy='single' is one process"),
        (lambda: EngineConfig(cpu_offload=True), "engine.cpu_offload"),
        (lambda: EngineConfig(compression="sign"), "engine.compression='sign'"),
        (lambda: EngineConfig(precision="fp16", device="cpu"), "needs CUDA"),
        (lambda: EngineConfig(precision="fp16", strategy="fsdp2"), "Use 'bf16'"),
        (lambda: FullTrainingConfig(batch_size=10, engine=EngineConfig(accumulation=3)), "Use 9"),
        (lambda: FullTrainingConfig(epochs=0), "epochs=0"),
        (lambda: FullTrainingConfig(epochs=True), "epochs=True"),
        (
            lambda: FullTrainingConfig(quantiser="lsq", optimizer=OptimizerConfig(name="kfac")),
            "leaf",
        ),
        (lambda: EngineConfig(strategy="ddp"), "use 'single'"),
        (
            lambda: FullTrainingConfig(
                optimizer=OptimizerConfig(name="kfac"),
                engine=EngineConfig(strategy="ddp", processes=2),
            ),
            "strategy='single' only",
        ),
        (CentralPrivacy, "exactly one of the two"),
        (
            lambda: FullTrainingConfig(
                privacy=CentralPrivacy(target_epsilon=1.0), optimizer=OptimizerConfig(name="lbfgs")
            ),
            "first-order",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(make, named):
    with pytest.raises(FullTrainingConfigError) as refused:
        make()
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (WHOLE + "[optimizer]\nlearning_rat = 1.0\n", "optimizer.learning_rat is not a key"),
        (WHOLE + "[training]\nepoch = 1\n", "training.epoch is not a key"),
        (WHOLE + "[engines]\n", "engines is not a key"),
        (WHOLE.replace("train =", "trian ="), "data.trian is not a key"),
        (WHOLE.replace('out = "run"', ""), "out=None must be a text"),
        (WHOLE + "[training]\nepochs = 'ten'\n", "epochs='ten'"),
        ("out = ", "is not TOML"),
    ],
)
def test_a_file_is_checked_before_anything_runs(text, named, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(FullTrainingConfigError) as refused:
        read_recipe(path)
    assert named in str(refused.value)


def test_a_file_says_what_its_dataclasses_say(tmp_path):
    config = make_config(
        {"training": {"epochs": 3, "batch_size": 12},
         "optimizer": {"name": "lion", "hyperparameters": {"betas": [0.9, 0.99]}},
         "engine": {"accumulation": 4, "blocks": ["layers"]}}
    )  # fmt: skip
    assert (config.epochs, config.optimizer.name, config.engine.blocks) == (3, "lion", ("layers",))


def test_a_factory_must_be_there(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(WHOLE)
    with pytest.raises(FullTrainingConfigError, match="'a:b'"):
        read_recipe(path).model()
