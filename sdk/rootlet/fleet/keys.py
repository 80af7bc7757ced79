"""The node key: the ECDSA key that identifies a device to the SuperLink.

P-256 or P-384. The private key is kept in a file that only its owner may read; the public key goes
to the operator, who registers it with `flwr supernode register`.
"""

import os
import stat
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rootlet.errors import NodeKeyError

CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}


class NodeKey:
    """A private node key.

    Attributes:
        public_pem: The public key in PEM (SubjectPublicKeyInfo), as the Fleet API wants it.
    """

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key
        self.public_pem = private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @classmethod
    def generate(cls, curve: str = "P-256") -> Self:
        """Return a new key.

        Raises:
            NodeKeyError: A curve other than P-256 or P-384.
        """
        if curve not in CURVES:
            raise NodeKeyError(f"curve {curve!r} is unknown; use one of {', '.join(CURVES)}")
        return cls(ec.generate_private_key(CURVES[curve]))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a key in PEM or OpenSSH format, without a passphrase.

        Raises:
            NodeKeyError: The file is missing, readable by others, or holds no P-256 or P-384 key.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise NodeKeyError(f"node key {path} cannot be read: {error}") from error
        if os.name == "posix" and mode & 0o077:
            raise NodeKeyError(
                f"node key {path} has mode {mode:o}, so others may use it; run chmod 600 {path}"
            )
        openssh = content.startswith(b"-----BEGIN OPENSSH")
        load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        try:
            key = load(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise NodeKeyError(
                f"node key {path} is not a private key in PEM or OpenSSH format without a "
                f"passphrase: {error}"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
            key.curve, ec.SECP256R1 | ec.SECP384R1
        ):
            raise NodeKeyError(
                f"node key {path} is not an elliptic-curve key on {' or '.join(CURVES)}; make one "
                "with NodeKey.generate() or ssh-keygen -t ecdsa -b 384"
            )
        return cls(key)

    @classmethod
    def load_or_generate(cls, path: Path | str) -> Self:
        """Read the key at `path`, or make one there."""
        path = Path(path)
        if path.exists():
            return cls.load(path)
        key = cls.generate()
        key.save(path)
        return key

    def save(self, path: Path | str) -> None:
        """Write the private key (mode 600) and `<path>.pub` beside it, both in OpenSSH format.

        A stock `flower-supernode` reads no other format.

        Raises:
            FileExistsError: There is a file at `path`; keys are never overwritten.
        """
        path = Path(path)
        content = self._private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        path.with_name(f"{path.name}.pub").write_text(f"{self.public_openssh}\n")

    @property
    def public_openssh(self) -> str:
        """The public key in the one-line OpenSSH format that `flwr supernode register` reads."""
        return (
            self._private_key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )

    def sign(self, content: bytes) -> bytes:
        """Return the ECDSA-SHA256 signature of `content`, DER-encoded."""
        return self._private_key.sign(content, ec.ECDSA(hashes.SHA256()))
