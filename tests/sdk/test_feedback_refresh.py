"""A refreshed feedback on a device: kept across restarts, never going back; and its command."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.cli_bundle import add_bundle_parser
from rootlet.client import DeviceClient
from rootlet.continual import Continual
from rootlet.learner import Learner
from rootlet.train_config import TrainConfig
from rootlet_runtime import Bundle, save_keypair
from rootlet_runtime.batches import Batch
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.feedback_part import encode_part, write_part

GOOD = Path(__file__).parents[1] / "vectors" / "bundles" / "good.rootlet"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.load(GOOD, trusted_keys=[KEY.public_key()])


def write(bundle: Bundle, folder: Path, version: int) -> Path:
    """A part of a version, whose constant is that number."""
    value = np.full((4, 6), float(version), np.float32)
    part = encode_part(bundle, {"train": {"P": value}}, version=version, signing_key=KEY)
    path = folder / f"{version}.part"
    write_part(path, part)
    return path


def test_a_device_keeps_it_and_never_goes_back(bundle: Bundle, tmp_path: Path) -> None:
    second, third = write(bundle, tmp_path, 2), write(bundle, tmp_path, 3)
    with DeviceClient(bundle, tmp_path / "state") as client:
        assert client.refresh_feedback(third) == 3
    with DeviceClient(bundle, tmp_path / "state") as client:
        for path in (second, third):
            with pytest.raises(FeedbackPartError, match="older than 4"):
                client.refresh_feedback(path)
        assert client.refresh_feedback(write(bundle, tmp_path, 4)) == 4


def learner(bundle: Bundle, folder: Path) -> Learner:
    continual = Continual(TrainConfig().continual, bundle.manifest, folder / "replay", lambda: None)
    return Learner(bundle, folder, 1, continual)


def head_after_a_step(made: Learner) -> np.ndarray:
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    made.trainer.load_adapter(made.trainer.bundle.initial_adapter())
    made.trainer._engine.step(Batch(x, np.array([0, 1]), np.ones(2, np.float32), 2), 0.5)
    return made.trainer.adapter["head.weight"]


def test_a_restart_learns_by_the_same_feedback(bundle: Bundle, tmp_path: Path) -> None:
    first = learner(bundle, tmp_path / "adapter")
    own = head_after_a_step(first)
    first.refresh_feedback(write(bundle, tmp_path, 1).read_bytes())
    refreshed = head_after_a_step(first)
    assert not np.array_equal(own, refreshed)
    again = learner(bundle, tmp_path / "adapter")
    assert again.feedback_version == 1
    assert np.array_equal(head_after_a_step(again), refreshed)


def test_a_damaged_file_leaves_the_bundles_own_feedback(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = learner(bundle, tmp_path / "adapter")
    own = head_after_a_step(first)
    first.refresh_feedback(write(bundle, tmp_path, 1).read_bytes())
    kept = tmp_path / "adapter" / "feedback.part"
    kept.write_bytes(kept.read_bytes()[:-1])
    again = learner(bundle, tmp_path / "adapter")
    assert again.feedback_version == 0
    assert "the bundle's own feedback" in caplog.text
    assert np.array_equal(head_after_a_step(again), own)


def test_the_command_checks_a_part_as_a_device_would(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, (_, public) = write(bundle, tmp_path, 3), save_keypair(tmp_path / "me", KEY)
    parser = argparse.ArgumentParser()
    add_bundle_parser(parser.add_subparsers())
    words = ["bundle", "refresh", str(GOOD), str(part), "--trusted-key", str(public)]
    for extra, code in (([], 0), (["--minimum-version", "4"], 1)):
        arguments = parser.parse_args([*words, *extra])
        assert arguments.run(arguments) == code
    output = capsys.readouterr()
    assert "feedback version 3 of tiny-softmax" in output.out
    assert "train: 1 constants" in output.out
    assert "version 3 is older than 4" in output.err
