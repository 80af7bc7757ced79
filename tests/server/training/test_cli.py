"""``rootlet train`` from a file, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from rootlet_server.cli import main

FILE = """\
out = "run"
tensorboard = true

[model]
factory = "small_net:make"
arguments = { width = 24 }

[data]
train = "train.npz"
held_out = "held_out.npz"

[training]
epochs = 4
batch_size = 50
checkpoint_every = 10

[optimizer]
learning_rate = 5e-3
"""
NET = """\
import torch
def make(width):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
    )
"""


@pytest.fixture
def folder(nets, tmp_path, monkeypatch):
    data = nets.digits()
    for name, part in (("train", data.train), ("held_out", data.held_out)):
        np.savez(tmp_path / f"{name}.npz", x=part.x.numpy(), y=part.y.numpy())
    (tmp_path / "config.toml").write_text(FILE)
    (tmp_path / "small_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("small_net", None)


def test_a_file_becomes_a_base_with_its_logs_and_report(folder, capsys):
    assert main(["train", "config.toml"]) == 0
    assert "32 steps" in capsys.readouterr().out
    run = folder / "run"
    assert {path.name for path in run.iterdir()} == {
        "base.safetensors", "checkpoints", "events.jsonl", "report.html", "report.png",
        "tensorboard",
    }  # fmt: skip
    assert len(list((run / "checkpoints").iterdir())) == 2
    assert main(["train", "config.toml"]) == 0
    assert "going on after step 32" in capsys.readouterr().out


def test_what_is_wrong_is_said_before_anything_runs(folder, capsys):
    (folder / "config.toml").write_text(FILE.replace("epochs", "epoch"))
    assert main(["train", "config.toml"]) == 1
    assert "training.epoch is not a key; there are" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_check_trains_nothing(folder, capsys):
    assert main(["train", "config.toml", "--check"]) == 0
    assert "4 epochs of batches of 50 by adamw" in capsys.readouterr().out
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_it_starts_the_processes_that_the_file_asks_for(folder):
    engine = '\n[engine]\ndevice = "cpu"\nstrategy = "fsdp2"\nprocesses = 2\n'
    (folder / "config.toml").write_text(FILE + engine)
    run = subprocess.run(
        [sys.executable, "-m", "rootlet_server.cli", "train", "config.toml"],
        check=False, capture_output=True, text=True, timeout=240,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("32 steps") == 1
    shards = list((folder / "run" / "checkpoints").glob("*32/*.safetensors"))
    assert len(shards) == 2
