"""A checkpoint is whole or refused, and a failing disk leaves the one before."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.errors import CheckpointError

Examples = tuple[Any, Any]


@pytest.fixture
def saved(trainer: Trainer, examples: Examples, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    trainer.fit(*examples, epochs=1, batch_size=8, learning_rate=0.1, rng=rng)
    trainer.save(tmp_path)
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def refuses(trainer: Trainer, folder: Path) -> None:
    before = trainer.adapter
    with pytest.raises(CheckpointError, match="Delete the folder"):
        trainer.restore(folder)
    assert all((trainer.adapter[name] == before[name]).all() for name in before)


def test_a_checkpoint_is_json_and_safetensors(saved: Path) -> None:
    assert [path.suffix for path in files(saved)] == [".safetensors", ".json"]
    assert json.loads((saved / "trainer.json").read_bytes())["schema"] == 1


def test_any_flipped_byte_is_refused(saved: Path, trainer: Trainer) -> None:
    for path in files(saved):
        good = path.read_bytes()
        for position in range(0, len(good), 7):
            changed = bytearray(good)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            refuses(trainer, saved)
        path.write_bytes(good)
    trainer.restore(saved)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(
    index: int, keep: float, saved: Path, trainer: Trainer
) -> None:
    path = files(saved)[index]
    good = path.read_bytes()
    path.write_bytes(good[: int(len(good) * keep)])
    refuses(trainer, saved)


def test_a_missing_data_file_is_refused(saved: Path, trainer: Trainer) -> None:
    files(saved)[0].unlink()
    refuses(trainer, saved)


def test_a_foreign_file_is_refused(saved: Path, trainer: Trainer) -> None:
    (saved / "trainer.json").write_text('{"weights": "model.pkl"}')
    refuses(trainer, saved)


def test_a_path_out_of_the_folder_is_refused(saved: Path, trainer: Trainer) -> None:
    record = json.loads((saved / "trainer.json").read_bytes())
    record["data_file"] = "../" + record["data_file"]
    (saved / "trainer.json").write_text(json.dumps(record, sort_keys=True, indent=1) + "\n")
    refuses(trainer, saved)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "tempfile.mkstemp"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_failing_disk_leaves_the_old_checkpoint(
    call: str,
    after: int,
    saved: Path,
    trainer: Trainer,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The write fails at its first or second file; the old checkpoint is read back whole."""
    old = trainer.adapter
    rng = np.random.default_rng(1)
    trainer.fit(*examples, epochs=1, batch_size=8, learning_rate=0.1, rng=rng)
    monkeypatch.setattr(call, _failing(call, after))
    with pytest.raises(CheckpointError, match="the one before it is intact"):
        trainer.save(saved)
    monkeypatch.undo()
    other = Trainer(trainer.bundle)
    other.restore(saved)
    assert all((other.adapter[name] == old[name]).all() for name in old)
    trainer.save(saved)
    assert len(files(saved)) == 2


def _failing(call: str, after: int) -> Callable[..., Any]:
    module, _, name = call.rpartition(".")
    owner: Any = Path if module == "pathlib.Path" else sys.modules[module]
    original, left = getattr(owner, name), [after * (2 if call == "os.fsync" else 1)]

    def failing(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return original(*args, **kwargs)

    return failing


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from rootlet_runtime import Bundle, Trainer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

bundle_path, folder, point = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
trainer = Trainer(Bundle.load(bundle_path, trusted_keys=[key]))
trainer.load_adapter({n: np.ones_like(a) for n, a in trainer.adapter.items()})
trainer.save(folder)
trainer.load_adapter({n: np.full_like(a, 2) for n, a in trainer.adapter.items()})
calls = 0

def watch(event, arguments):
    global calls
    if event in ("open", "os.rename", "os.remove", "tempfile.mkstemp"):
        calls += 1
        if calls == point:
            os.kill(os.getpid(), 9)

sys.addaudithook(watch)
trainer.save(folder)
"""


def test_a_crash_at_any_point_leaves_one_of_the_two(
    bundle_paths: dict[str, Path], key: Any, tmp_path: Path
) -> None:
    """The writer is killed at each of its file operations in turn."""
    path = bundle_paths["adam"]
    trainer = Trainer(Bundle.load(path, trusted_keys=[key.public_key()]))
    found = set()
    for point in range(1, 30):
        folder = tmp_path / str(point)
        command = [sys.executable, "-c", CRASH, str(path), str(folder), str(point)]
        code = subprocess.run(command, timeout=60, check=False).returncode
        trainer.restore(folder)
        found.add(float(trainer.adapter["head.bias"][0]))
        if code == 0:
            break
        assert code == -9
    else:
        pytest.fail("the writer never came to its end")
    assert found == {1.0, 2.0}
