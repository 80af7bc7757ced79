from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import Bundle, Manifest, errors, generate_keypair, publish, write_bundle

Tiny = Callable[[str], tuple[Manifest, dict[str, bytes]]]


def test_publishing_again_raises_the_version_and_keeps_the_weights(
    bundle: Bundle, tmp_path: Path
) -> None:
    private, public = generate_keypair()
    better = {name: array + 1 for name, array in bundle.initial_adapter().items()}
    manifest = publish(bundle, tmp_path / "new", signing_key=private, adapter=better)
    assert manifest.version == bundle.manifest.version + 1
    with Bundle.load(tmp_path / "new", trusted_keys=[public], minimum_version=4) as new:
        assert new.entry("base.bin") == bundle.entry("base.bin")
        for name, array in new.initial_adapter().items():
            np.testing.assert_array_equal(array, better[name])


def test_publishing_an_older_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    private, _ = generate_keypair()
    with pytest.raises(errors.RollbackError, match="use 4 or more"):
        publish(bundle, tmp_path / "new", signing_key=private, version=3)
    assert not (tmp_path / "new").exists()


def test_an_unsigned_bundle_is_signed_at_its_own_version(tiny: Tiny, tmp_path: Path) -> None:
    write_bundle(tmp_path / "raw", *tiny("sgd"), None)
    private, public = generate_keypair()
    with Bundle.load(tmp_path / "raw", trusted_keys=[], allow_unsigned=True) as source:
        publish(source, tmp_path / "signed", signing_key=private, expires_at="2039-01-01T00:00:00Z")
    with Bundle.load(tmp_path / "signed", trusted_keys=[public]) as signed:
        assert (signed.manifest.version, signed.manifest.expires_at) == (3, "2039-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("head.bias"),
        lambda a: a.update(more=np.zeros(1, np.float32)),
        lambda a: a.update({"head.bias": np.zeros(4, np.float32)}),
        lambda a: a.update({"head.bias": np.zeros(3, np.float64)}),
        lambda a: a.update({"head.bias": np.full(3, np.inf, np.float32)}),
    ],
)
def test_an_adapter_that_does_not_fit_is_not_published(
    change: Callable[[dict[str, Any]], object], bundle: Bundle, tmp_path: Path
) -> None:
    adapter: dict[str, Any] = bundle.initial_adapter()
    change(adapter)
    private, _ = generate_keypair()
    with pytest.raises(errors.AdapterError):
        publish(bundle, tmp_path / "new", signing_key=private, adapter=adapter)


def test_files_must_be_those_of_a_bundle(
    tiny: Tiny, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    manifest, files = tiny("sgd")
    with pytest.raises(errors.ManifestError, match=r"base\.bin"):
        write_bundle(tmp_path / "b", manifest, files | {"notes.txt": b""}, key)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_failing_disk_leaves_the_old_bundle(
    call: str,
    tiny: Tiny,
    key: Ed25519PrivateKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, fail)
    with pytest.raises(OSError, match="No space"):
        write_bundle(path, *tiny("sgd"), key)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
