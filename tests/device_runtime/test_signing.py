import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import (
    generate_keypair,
    key_id,
    load_private_key,
    load_public_key,
    save_keypair,
    signing,
)
from rootlet_runtime.errors import KeyFileError


def test_keys_survive_the_disk(tmp_path: Path) -> None:
    private, public = generate_keypair()
    private_path, public_path = save_keypair(tmp_path / "keys" / "publisher", private)
    assert stat.S_IMODE(private_path.stat().st_mode) == 0o600
    assert load_public_key(public_path) == public
    assert load_private_key(private_path).public_key() == public


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    private, _ = generate_keypair()
    (tmp_path / "k.pub.pem").write_text("mine")
    with pytest.raises(KeyFileError, match="another name"):
        save_keypair(tmp_path / "k", private)
    assert not (tmp_path / "k.pem").exists()


def test_known_answer_of_rfc_8032() -> None:
    """RFC 8032, section 7.1, test 2."""
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert key.sign(b"\x72") == signature
    assert signing.find_signer(b"\x72", signature, [key.public_key()]) == key.public_key()
    assert signing.find_signer(b"\x73", signature, [key.public_key()]) is None


def test_key_id_is_short_and_stable(key: Ed25519PrivateKey) -> None:
    assert key_id(key.public_key()) == key_id(key.public_key())
    assert len(key_id(key.public_key())) == 16


@pytest.mark.parametrize("content", [b"", b"junk", b"\x00" * 20_000])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    for load in (load_private_key, load_public_key):
        with pytest.raises(KeyFileError, match=r"key\.pem"):
            load(path)


def test_other_kinds_of_key_are_refused(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "ec.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(KeyFileError, match="Ed25519"):
        load_private_key(path)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.write_bytes(public)
    with pytest.raises(KeyFileError, match="Ed25519"):
        load_public_key(path)


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    private_path, _ = save_keypair(tmp_path / "k", generate_keypair()[0])
    with pytest.raises(KeyFileError, match=r"\.pub\.pem"):
        load_public_key(private_path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        load_public_key(tmp_path / "none.pem")
