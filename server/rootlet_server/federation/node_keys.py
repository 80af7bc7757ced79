"""The public keys of the devices that may join, read from files.

A device key is an elliptic-curve public key on P-256, P-384 or P-521, as PEM
(SubjectPublicKeyInfo) or as an OpenSSH line (`ecdsa-sha2-nistp256 …`), in a file that ends in
`.pub` or `.pem`.
"""

from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rootlet_server.errors import NodeKeyError

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_SUFFIXES = (".pub", ".pem")
_MAX_KEY_BYTES = 10_000


def key_files(source: Path | Iterable[Path]) -> tuple[Path, ...]:
    """The key files of `source`: the `.pub` and `.pem` files of a directory, or themselves.

    Raises:
        NodeKeyError: there is none.
    """
    if isinstance(source, Path) and not source.exists():
        raise NodeKeyError(
            f"{source} does not exist; make that folder and put the public key of each device "
            "(its .pub file) there"
        )
    if isinstance(source, Path) and source.is_dir():
        found = tuple(sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES))
    else:
        found = (source,) if isinstance(source, Path) else tuple(source)
    if not found:
        raise NodeKeyError(
            f"{source} holds no device key (*.pub or *.pem); without one no device could join"
        )
    return found


def load_public_key(path: Path) -> bytes:
    """The key in `path` as PEM bytes of its SubjectPublicKeyInfo.

    Raises:
        NodeKeyError: the file cannot be read, is a private key, or holds a key on another curve.
    """
    try:
        data = path.read_bytes()[:_MAX_KEY_BYTES]
        key = (
            serialization.load_pem_public_key(data)
            if data.lstrip().startswith(b"-----BEGIN")
            else serialization.load_ssh_public_key(data)
        )
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise NodeKeyError(
            f"{path} is not a public key ({error}); give the device's P-256 or P-384 public key"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise NodeKeyError(
            f"{path} holds a {type(key).__name__}; the Fleet API takes P-256, P-384 or P-521"
        )
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
