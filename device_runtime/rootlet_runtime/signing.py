"""Ed25519 keys: who published a bundle (RFC 8032).

The signature covers the exact bytes of ``manifest.json``; the manifest holds the SHA-256 of every
other file. Private keys are PEM (PKCS 8, readable by their owner only), public keys PEM
(SubjectPublicKeyInfo).
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from rootlet_runtime.errors import KeyFileError

SIGNATURE_BYTES = 64
MAX_KEY_FILE_BYTES = 16384
_KEY_ID_CHARACTERS = 16


def generate_keypair() -> tuple[Ed25519PrivateKey, Ed25519PublicKey]:
    """A new key pair, from the operating system's random numbers."""
    private = Ed25519PrivateKey.generate()
    return private, private.public_key()


def public_key_hex(key: Ed25519PublicKey) -> str:
    """The 32 raw bytes in hexadecimal: the manifest's ``publisher``."""
    return key.public_bytes_raw().hex()


def key_id(key: Ed25519PublicKey) -> str:
    """A short name for people: the first 16 hexadecimal digits of the key's SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_KEY_ID_CHARACTERS]


def find_signer(
    message: bytes, signature: bytes, keys: Iterable[Ed25519PublicKey]
) -> Ed25519PublicKey | None:
    """The first of ``keys`` under which ``signature`` is valid for ``message``, or ``None``."""
    for key in keys:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        return key
    return None


def save_keypair(stem: str | os.PathLike[str], private: Ed25519PrivateKey) -> tuple[Path, Path]:
    """Writes ``<stem>.pem`` (mode 0600) and ``<stem>.pub.pem``; never overwrites.

    Raises:
        KeyFileError: a file exists or cannot be written.
    """
    private_path = Path(f"{os.fspath(stem)}.pem")
    public_path = Path(f"{os.fspath(stem)}.pub.pem")
    for path in (private_path, public_path):
        if path.exists():
            raise KeyFileError(f"{path} exists; choose another name or move the old key away")
    private_pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_new(private_path, private_pem, 0o600)
    _write_new(public_path, public_pem, 0o644)
    return private_path, public_path


def load_private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """Reads an unencrypted PKCS 8 PEM.

    Raises:
        KeyFileError: unreadable, encrypted, or not an Ed25519 private key.
    """
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not an unencrypted private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: holds a {type(key).__name__}; bundles are signed by Ed25519")
    return key


def load_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Reads a SubjectPublicKeyInfo PEM.

    Raises:
        KeyFileError: unreadable, a private key, or not an Ed25519 public key.
    """
    pem = _read(path)
    if b"PRIVATE KEY" in pem:
        raise KeyFileError(f"{path}: holds a private key where a public one (.pub.pem) is due")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: holds a {type(key).__name__}; bundles are signed by Ed25519")
    return key


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"{path}: larger than {MAX_KEY_FILE_BYTES} bytes; not a key")
    return content


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror or error}") from error
