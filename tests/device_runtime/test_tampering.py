"""No byte of a bundle is free: whatever changes, the bundle is refused."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootlet_runtime import Bundle, errors

STRIDE = 5


def is_refused(path: Path, key: Ed25519PrivateKey) -> bool:
    try:
        Bundle.load(path, trusted_keys=[key.public_key()]).close()
    except errors.BundleError:
        return True
    return False


@pytest.mark.parametrize("offset", range(STRIDE))
def test_any_flipped_byte_is_refused(
    offset: int, bundle_paths: dict[str, Path], key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    good = bundle_paths["sgd"].read_bytes()
    path = tmp_path / "flipped.rootlet"
    for position in range(offset, len(good), STRIDE):
        changed = bytearray(good)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        assert is_refused(path, key), f"byte {position} of {len(good)}"


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_any_edit_is_refused(
    data: st.DataObject, bundle_paths: dict[str, Path], key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    good = bundle_paths["sgd"].read_bytes()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 200)))
    changed = good[:start] + data.draw(st.binary(max_size=200)) + good[end:]
    path = tmp_path / "edited.rootlet"
    path.write_bytes(changed)
    assert is_refused(path, key) == (changed != good)


@pytest.mark.parametrize("length", [0, 1, 21, 22, 100, 4000])
def test_a_truncated_bundle_is_refused(
    length: int, bundle_paths: dict[str, Path], key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    path = tmp_path / "short.rootlet"
    path.write_bytes(bundle_paths["sgd"].read_bytes()[:length])
    with pytest.raises(errors.ArchiveError):
        Bundle.load(path, trusted_keys=[key.public_key()])


def test_a_missing_path_is_refused_by_name(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    with pytest.raises(errors.ArchiveError, match="absent"):
        Bundle.load(tmp_path / "absent.rootlet", trusted_keys=[key.public_key()])
    with pytest.raises(errors.ArchiveError, match="cannot be read"):
        Bundle.load(tmp_path, trusted_keys=[key.public_key()])
