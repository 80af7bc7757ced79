"""The buffer's quota and law, its file, and what it does to a training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rootlet_runtime import Bundle, Trainer
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.batches import Schedule
from rootlet_runtime.errors import CheckpointError, DataError
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings

D, K = 4, 3


@pytest.fixture
def manifest(tiny: Callable[..., tuple[Manifest, dict[str, bytes]]]) -> Manifest:
    return tiny("sgd")[0]


def stream(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)).astype(np.float32), rng.integers(0, K, n)


def filled(manifest: Manifest, quota: int = 6000, n: int = 500, **settings) -> ReplayBuffer:
    buffer = ReplayBuffer(manifest, ReplaySettings(quota_bytes=quota, **settings))
    buffer.add(*stream(n), np.random.default_rng(1), uses=2)
    return buffer


@pytest.mark.parametrize("selection", ["uniform", "class_balanced"])
@pytest.mark.parametrize("storage", ["exact", "float16", "uint8"])
def test_the_file_is_within_the_quota_and_comes_back_whole(
    manifest: Manifest, tmp_path: Path, selection: str, storage: str
) -> None:
    files = ArrayFiles(tmp_path)
    buffer = filled(manifest, 9000, selection=selection, storage=storage)
    assert len(buffer) == buffer.capacity < buffer.seen == 500
    buffer.save(files, "replay")
    (path,) = tmp_path.iterdir()
    assert 9000 - 4096 < path.stat().st_size <= 9000
    again = ReplayBuffer(manifest, buffer.settings)
    assert again.restore(files, "replay")
    for one in (buffer, again):  # both go on from here in the same way
        one.add(*stream(200, seed=5), np.random.default_rng(9))
    for found, expected in zip(again.examples(), buffer.examples(), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again.uses, buffer.uses)
    assert again.seen == buffer.seen == 700


def test_what_is_held_was_offered(manifest: Manifest) -> None:
    buffer = filled(manifest, storage="exact")
    offered = {x.tobytes() + bytes([y]) for x, y in zip(*stream(500), strict=True)}
    held = {x.tobytes() + bytes([y]) for x, y in zip(*buffer.examples(), strict=True)}
    assert len(held) == buffer.capacity
    assert held <= offered
    counts = np.bincount(buffer.examples()[1], minlength=K)
    assert np.ptp(counts) <= 1


def test_the_same_generator_gives_the_same_buffer(manifest: Manifest) -> None:
    one, two = filled(manifest), filled(manifest)
    np.testing.assert_array_equal(one.examples()[0], two.examples()[0])
    three = ReplayBuffer(manifest, one.settings)
    three.add(*stream(500), np.random.default_rng(2))
    assert (three.examples()[0] != one.examples()[0]).any()


def test_a_crash_while_writing_leaves_the_old_file(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ArrayFiles(tmp_path)
    buffer = filled(manifest)
    buffer.save(files, "replay")
    before = buffer.examples()[0]
    buffer.add(*stream(300, seed=3), np.random.default_rng(4))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        buffer.save(files, "replay")
    monkeypatch.undo()
    again = ReplayBuffer(manifest, buffer.settings)
    assert again.restore(files, "replay")
    np.testing.assert_array_equal(again.examples()[0], before)


def test_a_damaged_file_is_refused_wherever_the_damage_is(
    manifest: Manifest, tmp_path: Path
) -> None:
    files = ArrayFiles(tmp_path)
    buffer = filled(manifest)
    buffer.save(files, "replay")
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    for cut in (raw[:-1], raw[:20], b"", raw[:40] + bytes([raw[40] ^ 1]) + raw[41:]):
        path.write_bytes(cut)
        with pytest.raises(CheckpointError, match=r"damaged.*Delete it"):
            ReplayBuffer(manifest, buffer.settings).restore(files, "replay")


def test_a_buffer_of_other_settings_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    files = ArrayFiles(tmp_path)
    filled(manifest).save(files, "replay")
    other = ReplayBuffer(manifest, ReplaySettings(quota_bytes=7000))
    with pytest.raises(CheckpointError, match="other settings"):
        other.restore(files, "replay")
    assert not other.restore(files, "absent")


def test_every_byte_on_disk_passes_through_the_cipher(manifest: Manifest, tmp_path: Path) -> None:
    class Xor:
        def seal(self, name: str, plain: bytes) -> bytes:
            return bytes(byte ^ 0x5A for byte in plain)

        open = seal

    buffer = filled(manifest, storage="exact")
    buffer.save(ArrayFiles(tmp_path, Xor()), "replay")
    (path,) = tmp_path.iterdir()
    row = buffer.examples()[0][0].tobytes()
    assert row not in path.read_bytes()
    assert ReplayBuffer(manifest, buffer.settings).restore(ArrayFiles(tmp_path, Xor()), "replay")
    with pytest.raises(CheckpointError, match="SHA-256"):
        ReplayBuffer(manifest, buffer.settings).restore(ArrayFiles(tmp_path), "replay")


def test_impossible_settings_are_refused(tiny: Callable[..., tuple[Manifest, dict]]) -> None:
    classes, regression = tiny("sgd")[0], tiny("sgd", "regression")[0]
    with pytest.raises(DataError, match=r"holds no example; one needs \d+ bytes"):
        ReplayBuffer(classes, ReplaySettings(quota_bytes=100))
    with pytest.raises(DataError, match="a regression has no classes"):
        ReplayBuffer(regression, ReplaySettings(quota_bytes=10_000))
    with pytest.raises(DataError, match="must be one of uniform, class_balanced"):
        ReplaySettings(quota_bytes=10_000, selection="newest")  # type: ignore[arg-type]
    buffer = ReplayBuffer(regression, ReplaySettings(quota_bytes=10_000, selection="uniform"))
    buffer.add(np.ones((3, D), np.float32), np.ones((3, K), np.float32), np.random.default_rng(0))
    assert buffer.examples()[1].shape == (3, K)
    for fraction in (0, 1):
        with pytest.raises(DataError, match="between 0 and 1"):
            Replay(buffer=buffer, fraction=fraction)
    with pytest.raises(DataError, match="at least 2"):
        Replay(buffer=buffer).rows_per_batch(1)


def test_a_schedule_uses_replayed_rows_equally_often_and_counts_them() -> None:
    schedule = Schedule(seed=3, examples=23, batch_size=8, epochs=4, replayed=7, replay_per_batch=3)
    batches = list(schedule.rows())
    assert len(batches) == schedule.steps == 4 * 5
    fresh = np.concatenate([rows[rows < 23] for rows in batches])
    replayed = np.concatenate([rows[rows >= 23] for rows in batches]) - 23
    np.testing.assert_array_equal(np.bincount(fresh), np.full(23, 4))
    counts = np.bincount(replayed, minlength=7)
    assert np.ptp(counts) <= 1
    np.testing.assert_array_equal(counts, schedule.replay_uses())
    for start in (1, 7, 13):  # a resumed run sees the same rows
        for rows, expected in zip(schedule.rows(start), batches[start:], strict=True):
            np.testing.assert_array_equal(rows, expected)


def test_replay_keeps_an_earlier_task_and_charges_its_uses(bundle: Bundle) -> None:
    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, D)).astype(np.float32)
    old, new = (x[:, :K].argmax(1), x[:, :K].argmin(1))  # the second task contradicts the first
    buffer = ReplayBuffer(manifest, ReplaySettings(quota_bytes=9000, storage="exact"))
    settings = {"epochs": 15, "batch_size": 8, "learning_rate": 0.05}
    kept = {}
    for replay in (None, Replay(buffer=buffer, fraction=0.5)):
        trainer = Trainer(bundle)
        trainer.fit(x, old, rng=np.random.default_rng(1), replay=replay, **settings)
        if replay is not None:
            trainer.remember(buffer, x, old, np.random.default_rng(2), uses=15)
        result = trainer.fit(x, new, rng=np.random.default_rng(3), replay=replay, **settings)
        kept[replay is not None] = trainer.evaluate(x, old).metric
    assert kept[True] > kept[False] + 0.2
    assert sum(result.replay_uses) == result.steps * 4
    np.testing.assert_array_equal(buffer.uses, 15 + np.array(result.replay_uses))


def test_an_empty_buffer_changes_nothing(bundle: Bundle, examples) -> None:
    buffer = ReplayBuffer(bundle.manifest, ReplaySettings(quota_bytes=9000))
    adapters = []
    for replay in (None, Replay(buffer=buffer)):
        trainer = Trainer(bundle)
        trainer.fit(
            *examples,
            epochs=2,
            batch_size=8,
            learning_rate=0.1,
            rng=np.random.default_rng(0),
            replay=replay,
        )
        adapters.append(trainer.adapter)
    for name, value in adapters[0].items():
        np.testing.assert_array_equal(value, adapters[1][name])


def test_a_stopped_fit_goes_on_with_the_same_bits_and_charges_once(
    bundle: Bundle, examples, tmp_path: Path
) -> None:
    def run(folder: Path, stop_at: int | None) -> tuple[dict, np.ndarray]:
        buffer = filled(bundle.manifest)
        trainer, start = Trainer(bundle), buffer.uses

        def fit(progress=None):
            return trainer.fit(
                *examples,
                epochs=3,
                batch_size=8,
                learning_rate=0.1,
                rng=np.random.default_rng(0),
                checkpoint_dir=folder,
                checkpoint_every=1,
                progress=progress,
                replay=Replay(buffer=buffer, fraction=0.25),
            )

        if stop_at is not None:
            stopped = fit(lambda report: report.step < stop_at)
            assert stopped.stopped
            np.testing.assert_array_equal(buffer.uses, start)
            trainer.load_adapter(bundle.initial_adapter())
        result = fit()
        assert result.resumed_from_step == (stop_at or 0)
        return trainer.adapter, buffer.uses - start

    whole, whole_uses = run(tmp_path / "a", None)
    parts, parts_uses = run(tmp_path / "b", 5)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name])
    np.testing.assert_array_equal(whole_uses, parts_uses)
