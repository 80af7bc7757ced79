"""A fit that is killed and taken up again ends with the same bits as one that ran through."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, FitProgress, FitResult, Trainer
from rootlet_runtime.errors import CheckpointError

Examples = tuple[Any, Any]
SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 0.1}
STEPS = 20


def fit(trainer: Trainer, examples: Examples, seed: int = 0, **changes: Any) -> FitResult:
    settings = SETTINGS | {"checkpoint_every": 3} | changes
    return trainer.fit(*examples, rng=np.random.default_rng(seed), **settings)


def until(step: int) -> Any:
    return lambda report: report.step < step


def same(first: Trainer, second: Trainer) -> bool:
    a, b = first.adapter, second.adapter
    return all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("stop", [1, 3, 5, 11, 19])
def test_a_stopped_fit_goes_on_with_the_same_bits(
    stop: int, bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    whole, first, second = Trainer(bundle), Trainer(bundle), Trainer(bundle)
    expected = fit(whole, examples)
    assert fit(first, examples, checkpoint_dir=tmp_path, progress=until(stop)).stopped
    result = fit(second, examples, checkpoint_dir=tmp_path, seed=99)
    assert same(whole, second)
    assert result.resumed_from_step == stop
    assert (result.steps, result.examples) == (expected.steps, expected.examples) == (STEPS, 148)
    assert (result.loss, result.metric) == (expected.loss, expected.metric)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_fit_goes_on_from_its_last_checkpoint(
    error: type[BaseException], bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    def interrupt(report: FitProgress) -> None:
        if report.step == 11:
            raise error

    whole, first, second = Trainer(bundle), Trainer(bundle), Trainer(bundle)
    fit(whole, examples)
    with pytest.raises(error):
        fit(first, examples, checkpoint_dir=tmp_path, progress=interrupt)
    assert fit(second, examples, checkpoint_dir=tmp_path).resumed_from_step == 9
    assert same(whole, second)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rootlet_runtime import Bundle, Trainer

path, folder, marker = sys.argv[1], sys.argv[2], Path(sys.argv[3])
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
data = np.load(folder + "/data.npz")
trainer = Trainer(Bundle.load(path, trusted_keys=[key]))

def wait_to_be_killed(report):
    if report.step == 11:
        marker.touch()
        while True:
            pass

trainer.fit(data["x"], data["y"], epochs=4, batch_size=8, learning_rate=0.1,
            rng=np.random.default_rng(0), progress=wait_to_be_killed,
            checkpoint_dir=folder + "/checkpoint", checkpoint_every=3)
"""


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_killed_process_is_taken_up_by_another(
    name: str, bundle_paths: dict[str, Path], key: Any, examples: Examples, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=examples[0], y=examples[1])
    marker = tmp_path / "at_step_11"
    command = [sys.executable, "-c", CHILD, str(bundle_paths[name]), str(tmp_path), str(marker)]
    child = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while not marker.exists():
            assert child.poll() is None, "the child ended early"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait(timeout=30)
    bundle = Bundle.load(bundle_paths[name], trusted_keys=[key.public_key()])
    whole, resumed = Trainer(bundle), Trainer(bundle)
    fit(whole, examples)
    result = fit(resumed, examples, checkpoint_dir=tmp_path / "checkpoint")
    assert result.resumed_from_step == 9
    assert same(whole, resumed)


def test_a_finished_fit_leaves_nothing_to_resume(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    first, second = Trainer(bundle), Trainer(bundle)
    fit(first, examples, checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    assert fit(second, examples, checkpoint_dir=tmp_path).resumed_from_step == 0


@pytest.mark.parametrize(
    "difference", ["x", "y", "epochs", "batch_size", "learning_rate", "adapter"]
)
def test_the_checkpoint_of_another_fit_is_ignored(
    difference: str, bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    stopped, other, fresh = Trainer(bundle), Trainer(bundle), Trainer(bundle)
    fit(stopped, examples, checkpoint_dir=tmp_path, progress=until(7))
    x, y = (array.copy() for array in examples)
    changes: dict[str, Any] = {}
    if difference == "x":
        x[3, 1] += 1
    elif difference == "y":
        y[3] = (y[3] + 1) % 3
    elif difference == "adapter":
        better = {name: array + 1 for name, array in bundle.initial_adapter().items()}
        other.load_adapter(better)
        fresh.load_adapter(better)
    else:
        changes = {difference: SETTINGS[difference] * 2}
    result = fit(other, (x, y), checkpoint_dir=tmp_path, **changes)
    fit(fresh, (x, y), **changes)
    assert result.resumed_from_step == 0
    assert same(other, fresh)


def test_another_bundles_checkpoint_is_ignored(
    bundle_paths: dict[str, Path], key: Any, examples: Examples, tmp_path: Path
) -> None:
    sgd, adam = (
        Trainer(Bundle.load(bundle_paths[name], trusted_keys=[key.public_key()]))
        for name in ("sgd", "adam")
    )
    fit(sgd, examples, checkpoint_dir=tmp_path, progress=until(7))
    assert fit(adam, examples, checkpoint_dir=tmp_path).resumed_from_step == 0


def test_a_damaged_checkpoint_stops_the_fit_and_changes_nothing(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    first, second = Trainer(bundle), Trainer(bundle)
    fit(first, examples, checkpoint_dir=tmp_path, progress=until(7))
    (tmp_path / "fit.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="Delete the folder"):
        fit(second, examples, checkpoint_dir=tmp_path)
    assert same(second, Trainer(bundle))


def test_checkpoints_and_saved_trainers_share_a_folder(
    bundle: Bundle, examples: Examples, tmp_path: Path
) -> None:
    trainer = Trainer(bundle)
    fit(trainer, examples, checkpoint_dir=tmp_path, progress=until(7))
    trainer.save(tmp_path)
    names = sorted(path.name.partition("-")[0] for path in tmp_path.iterdir())
    assert names == ["fit", "fit.json", "trainer", "trainer.json"]
    record = json.loads((tmp_path / "fit.json").read_bytes())
    assert record["notes"]["position"]["step"] == 7
