"""NaN, damaged and foreign checkpoints, kill -9, and no memory."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from rootlet_server.training import Arrays, FullTrainingConfig, TrainingData, train
from rootlet_server.training.errors import (
    BaseCheckpointError,
    BaseDataError,
    MemoryExhaustedError,
    NonFiniteError,
)
from rootlet_server.training.memory import advice


class Root(nn.Module):
    """The root of its input, whose derivative at zero is infinite."""

    def forward(self, x):
        return x.abs().sqrt()


class Overflow(nn.Module):
    """exp, which overflows float32 above 88."""

    def forward(self, x):
        return (1000 * x).exp()


def chain(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), middle, nn.Linear(8, 10))


def test_a_layer_that_overflows_is_named(nets):
    with pytest.raises(NonFiniteError, match=r"layer 2: its output is not finite") as failed:
        train(chain(Overflow()), nets.digits(), nets.config())
    assert (failed.value.layer, failed.value.step) == ("2", 1)


def test_a_layer_whose_gradient_overflows_is_named_and_the_last_good_weights_are_kept(
    nets, tmp_path
):
    """A layer of zeros below a root, whose derivative there is infinite times zero."""
    config = nets.config(training={"checkpoint_every": 1})
    model = nn.Sequential(nn.Linear(64, 8), Root(), nn.Linear(8, 10))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    with pytest.raises(NonFiniteError, match="layer 0: its weight is not finite"):
        train(model, nets.digits(), config, out=tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_rate_that_diverges_keeps_a_checkpoint_from_before(nets, tmp_path):
    config = nets.config(
        optimizer={"learning_rate": 900.0}, training={"checkpoint_every": 1, "epochs": 20},
        schedule={"decay": "constant", "warmup": 0.5},
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match="The last good checkpoint is") as failed:
        train(nets.residual(), nets.digits(), config, out=tmp_path)
    assert failed.value.layer
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert kept[-1].name in str(failed.value)


def trained_halfway(nets, folder):
    config = nets.config(training={"checkpoint_every": 5})
    train(nets.residual(), nets.digits(), config, out=folder)
    return config, sorted((folder / "checkpoints").iterdir())


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("victim", ["*.safetensors", "state.json", "gone"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(victim, nets, tmp_path):
    config, steps = trained_halfway(nets, tmp_path)
    if victim == "gone":
        next(steps[-1].glob("*.safetensors")).unlink()
    elif victim == "state.json":
        (steps[-1] / victim).write_bytes((steps[-1] / victim).read_bytes()[:-10])
    else:
        flip(next(steps[-1].glob(victim)))
    with pytest.raises(BaseCheckpointError, match=f"Delete {steps[-1].name}"):
        train(nets.residual(), nets.digits(), config, out=tmp_path)
    import shutil

    shutil.rmtree(steps[-1])
    again = train(nets.residual(), nets.digits(), config, out=tmp_path)
    assert again.resumed_from_step == 10


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(nets, tmp_path):
    trained_halfway(nets, tmp_path)
    other = nets.config(training={"checkpoint_every": 5}, optimizer={"learning_rate": 0.01})
    with pytest.raises(
        BaseCheckpointError, match=r"optimizer.learning_rate is 0.05 there and 0.01"
    ):
        train(nets.residual(), nets.digits(), other, out=tmp_path)
    with pytest.raises(BaseCheckpointError, match="of another run: model"):
        train(nets.residual(width=8), nets.digits(), nets.config(), out=tmp_path)


def test_no_pickle_in_a_checkpoint(nets, tmp_path):
    _, steps = trained_halfway(nets, tmp_path)
    assert {p.suffix for p in steps[-1].iterdir()} == {".json", ".safetensors"}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_weights(nets, nets_path, tmp_path):
    case = {"training": {"checkpoint_every": 2, "epochs": 6}, "optimizer": {"name": "adamw"},
            "out": str(tmp_path / "run")}  # fmt: skip
    command = [
        sys.executable,
        str(nets_path),
        str(tmp_path / "found.npz"),
        json.dumps({"it": case}),
    ]
    process = subprocess.Popen(command)
    folder = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(folder.glob("step-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, timeout=200)
    found = np.load(tmp_path / "found-0.npz")
    assert found["it/measured"][2] > 0  # it did go on, not start anew
    del case["out"]
    whole = train(nets.residual(), nets.digits(), nets.config(**case))
    np.testing.assert_array_equal(found["it"], nets.flat(whole.model).numpy())


class Greedy(nn.Module):
    """Asks for a petabyte."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x) + torch.empty(2**48, dtype=torch.float32).sum() * 0


def test_out_of_memory_says_what_to_turn_on(nets):
    with pytest.raises(MemoryExhaustedError) as failed:
        train(Greedy(), nets.digits(), nets.config())
    for option in ("engine.checkpointing = true", "engine.accumulation = 2", '"bf16"', '"fsdp2"'):
        assert option in str(failed.value)


def test_what_is_on_is_not_advised(nets):
    engine = {"strategy": "fsdp2", "processes": 2, "checkpointing": True, "precision": "bf16"}
    found = advice(nets.config(engine=engine))
    assert [option.partition(" ")[0] for option in found] == [
        "engine.accumulation", "engine.cpu_offload",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (np.full((4, 64), np.nan, np.float32), np.zeros(4, np.int64), "NaN"),
        (np.zeros((4, 64), np.float32), np.zeros(4, np.float32), "int64"),
        (np.zeros((4, 64), np.float32), np.full(4, 10), "classes 10..10"),
        (np.zeros((4, 64), np.float32), np.zeros(3, np.int64), "4 examples and y 3"),
    ],
)
def test_examples_that_do_not_fit_are_refused(x, y, named, nets):
    with pytest.raises(BaseDataError) as refused:
        train(nets.residual(), TrainingData(train=Arrays.of(x, y)), FullTrainingConfig(epochs=1))
    assert named in str(refused.value)


def test_the_error_survives_the_way_from_another_process():
    error = copy.copy(NonFiniteError("the loss is nan", layer="head", step=7))  # by __reduce__
    assert (str(error), error.layer, error.step) == ("the loss is nan", "head", 7)
