"""Who a device is: an Ed25519 identity, vouched for by an enrolment authority.

The authority's key is held by somebody other than the operator of the server: it is what keeps a
malicious server from inventing devices or from exchanging their keys. A certificate is the
authority's signature (64 bytes) and the document that it signs, in canonical JSON:

    {"schema": 1, "device": "<64 hex digits>", "name": "...", "expires": "2027-11-26T00:00:00Z"}

A device keeps its identity key (``identity.pem``, mode 0600), its certificate and the authority's
public key in the folder ``enrolment`` of its state directory.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from rootlet.secagg.errors import EnrolmentError
from rootlet_runtime import signing, strict_json
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import KeyFileError

SCHEMA, MAX_NAME, MAX_CERTIFICATE_BYTES = 1, 200, 4096
ID_BYTES = 32
_LABEL = b"rootlet-enrolment-1 "


@dataclass(frozen=True, kw_only=True)
class _Document:
    schema: int
    device: str
    name: str
    expires: str


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """An authority's word for a device.

    Attributes:
        device: Its Ed25519 public key, 32 bytes: its id in every secure round.
        name: For people.
        expires: When it ends, UTC.
        raw: As it travels.
    """

    device: bytes
    name: str
    expires: datetime
    raw: bytes

    @classmethod
    def issue(
        cls, authority: Ed25519PrivateKey, device: bytes, *, name: str, expires: datetime
    ) -> "Certificate":
        """Sign for a device.

        Raises:
            EnrolmentError: Not a public key, or a name that is empty or too long.
        """
        if len(device) != ID_BYTES or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise EnrolmentError(
                f"device of {len(device)} bytes, name {name!r:.80}: {ID_BYTES} bytes and 1 to "
                f"{MAX_NAME} printable characters are due"
            )
        document = strict_json.dumps(
            _Document(
                schema=SCHEMA,
                device=device.hex(),
                name=name,
                expires=expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )
        raw = authority.sign(_LABEL + document) + document
        return cls.verify(raw, [authority.public_key()], now=datetime.min.replace(tzinfo=UTC))

    @classmethod
    def verify(
        cls, raw: bytes, authorities: list[Ed25519PublicKey], *, now: datetime | None = None
    ) -> "Certificate":
        """Read a certificate of one of the authorities.

        Raises:
            EnrolmentError: Damaged, of another authority, or expired.
        """
        found = _read(raw, tuple(key.public_bytes_raw() for key in authorities))
        if found.expires <= (now or datetime.now(UTC)):
            raise EnrolmentError(
                f"the certificate of {found.name} ended on {found.expires:%Y-%m-%d}: enrol it "
                "anew, or set this device's clock"
            )
        return found


@lru_cache(maxsize=4096)
def _read(raw: bytes, authorities: tuple[bytes, ...]) -> Certificate:
    """A certificate of one of the authorities, whenever it expires; the same devices come again."""
    if not signing.SIGNATURE_BYTES < len(raw) <= MAX_CERTIFICATE_BYTES:
        raise EnrolmentError(f"a certificate of {len(raw)} bytes is none")
    signature, document = raw[: signing.SIGNATURE_BYTES], raw[signing.SIGNATURE_BYTES :]
    if not any(verified(key, signature, _LABEL + document) for key in authorities):
        raise EnrolmentError(
            "the certificate is not of the enrolment authority that this device trusts"
        )
    try:
        found = strict_json.decode(strict_json.parse(document), _Document)
        device, expires = bytes.fromhex(found.device), datetime.fromisoformat(found.expires)
    except (strict_json.StrictJsonError, ValueError) as error:
        raise EnrolmentError(f"the certificate is damaged: {error}") from error
    if found.schema != SCHEMA or len(device) != ID_BYTES or expires.tzinfo is None:
        raise EnrolmentError(f"the certificate of schema {found.schema} is not of {SCHEMA}")
    return Certificate(device=device, name=found.name, expires=expires, raw=raw)


@dataclass(frozen=True)
class Identity:
    """A device that may take part in secure rounds.

    Attributes:
        key: Its private key.
        certificate: The authority's word for it.
        authorities: Whose word it takes for others.
    """

    key: Ed25519PrivateKey
    certificate: Certificate
    authorities: tuple[Ed25519PublicKey, ...]

    @property
    def id(self) -> bytes:
        """Its public key, 32 bytes."""
        return self.certificate.device


class EnrolmentFolder:
    """Where a device keeps its identity; made if absent.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def device_id(self) -> bytes:
        """The public key to be enrolled; the private one is made on the first call.

        Raises:
            EnrolmentError: The key cannot be read or written.
        """
        return self._key(make=True).public_key().public_bytes_raw()

    def install(self, certificate: bytes, authority: Ed25519PublicKey) -> Certificate:
        """Keep a certificate for this device and the authority that it and all others are of.

        Raises:
            EnrolmentError: It is not the authority's, not for this device, or expired.
        """
        checked = Certificate.verify(certificate, [authority])
        if checked.device != self.device_id():
            raise EnrolmentError(
                f"the certificate is for device {checked.device.hex()[:16]}…, and this one is "
                f"{self.device_id().hex()[:16]}…"
            )
        write_atomically(self.path / "authority.pub", authority.public_bytes_raw())
        write_atomically(self.path / "certificate", certificate)
        return checked

    def load(self) -> Identity | None:
        """The device's identity; None where it is not enrolled.

        Raises:
            EnrolmentError: It is damaged or expired.
        """
        try:
            raw = (self.path / "certificate").read_bytes()
            authority = Ed25519PublicKey.from_public_bytes(
                (self.path / "authority.pub").read_bytes()
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise EnrolmentError(f"{self.path} is damaged ({error}): enrol again") from error
        certificate = Certificate.verify(raw, [authority])
        key = self._key(make=False)
        if key.public_key().public_bytes_raw() != certificate.device:
            raise EnrolmentError(f"{self.path} holds another device's certificate: enrol again")
        return Identity(key, certificate, (authority,))

    def _key(self, *, make: bool) -> Ed25519PrivateKey:
        path = self.path / "identity.pem"
        try:
            if make and not path.exists():
                stem = self.path / "identity"
                with contextlib.suppress(FileNotFoundError):
                    stem.with_suffix(".pub.pem").unlink()
                signing.save_keypair(stem, Ed25519PrivateKey.generate())
            return signing.load_private_key(path)
        except (KeyFileError, OSError) as error:
            raise EnrolmentError(f"the identity key cannot be used: {error}") from error


def verified(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature is valid."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
