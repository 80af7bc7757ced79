import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import Bundle, Manifest, Trainer, errors, generate_keypair, write_bundle

Tiny = Callable[[str], tuple[Manifest, dict[str, bytes]]]


def test_a_loaded_bundle_gives_what_was_written(
    bundle_paths: dict[str, Path], key: Ed25519PrivateKey, tiny: Tiny
) -> None:
    _, files = tiny("adam")
    with Bundle.load(bundle_paths["adam"], trusted_keys=[key.public_key()]) as bundle:
        assert bundle.publisher == key.public_key()
        assert bundle.manifest.publisher == key.public_key().public_bytes_raw().hex()
        for name, content in files.items():
            assert bytes(bundle.entry(name)) == content
        assert set(bundle.initial_adapter()) == {"head.weight", "head.bias"}
        assert bundle.summaries["train"].external[0].name == "P"


def test_entries_are_views_of_one_mapping_at_aligned_offsets(
    bundle_paths: dict[str, Path], key: Ed25519PrivateKey
) -> None:
    with Bundle.load(bundle_paths["sgd"], trusted_keys=[key.public_key()]) as bundle:
        names = ("manifest.json", "train.onnx", "base.bin")
        starts = {n: np.frombuffer(bundle.entry(n), np.uint8).ctypes.data for n in names}
        assert bundle.entry("base.bin").readonly
        assert starts["base.bin"] % 4096 == 0
        assert all(start % 64 == 0 for start in starts.values())
        assert max(starts.values()) - min(starts.values()) < bundle_paths["sgd"].stat().st_size


def test_ordinary_tools_read_a_bundle(bundle_paths: dict[str, Path]) -> None:
    with zipfile.ZipFile(bundle_paths["sgd"]) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == ["manifest.json", "manifest.sig"]


def test_the_same_content_gives_the_same_bytes(
    bundle_paths: dict[str, Path], key: Ed25519PrivateKey, tiny: Tiny, tmp_path: Path
) -> None:
    manifest, files = tiny("sgd")
    paths = {name: tmp_path / name for name in files}
    for name, path in paths.items():
        path.write_bytes(files[name])
    write_bundle(tmp_path / "again", manifest, paths, key)
    assert (tmp_path / "again").read_bytes() == bundle_paths["sgd"].read_bytes()


def test_the_initial_adapter_is_a_copy(bundle: Bundle) -> None:
    bundle.initial_adapter()["head.bias"][:] = 9
    assert not (bundle.initial_adapter()["head.bias"] == 9).any()


def test_an_unsigned_bundle_needs_the_explicit_flag(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "unsigned"
    write_bundle(path, *tiny("sgd"), None)
    _, public = generate_keypair()
    for keys in ([], [public]):
        with pytest.raises(errors.UnsignedError, match="sign it"):
            Bundle.load(path, trusted_keys=keys)
        with Bundle.load(path, trusted_keys=keys, allow_unsigned=True) as bundle:
            assert bundle.publisher is None
            assert bundle.signature is None


def test_allowing_unsigned_bundles_does_not_allow_other_publishers(
    bundle_paths: dict[str, Path],
) -> None:
    _, public = generate_keypair()
    with pytest.raises(errors.UnknownPublisherError):
        Bundle.load(bundle_paths["sgd"], trusted_keys=[public], allow_unsigned=True)


def test_without_trusted_keys_a_signed_bundle_is_only_intact(bundle_paths: dict[str, Path]) -> None:
    with Bundle.load(bundle_paths["sgd"], trusted_keys=[], allow_unsigned=True) as bundle:
        assert bundle.publisher is None
        assert bundle.signature is not None


def test_a_closed_bundle_says_so_and_graphs_already_open_go_on(bundle: Bundle) -> None:
    trainer = Trainer(bundle)
    x = np.zeros((1, 4), np.float32)
    before = trainer.predict(x)
    bundle.close()
    np.testing.assert_array_equal(trainer.predict(x), before)
    with pytest.raises(errors.ArchiveError, match="is closed"):
        bundle.entry("base.bin")
    with pytest.raises(errors.TrainingError, match="is closed"):
        trainer.evaluate(x, np.zeros(1, np.int64))
