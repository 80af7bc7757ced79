"""Keys of a secure round: X25519 agreements, and HKDF-SHA256 labels that tell every use apart.

Each derived key is bound to the round's plan and to the roster of its devices:

    key = HKDF-SHA256(secret, info = "rootlet-secagg-1 " | label | context | low | high)

with ``context`` the SHA-256 of the roster, which holds that of the plan, and the two devices'
places in the roster as 32-bit big-endian numbers, the smaller first. Channel keys encrypt shares
by AES-256-GCM under a random nonce, with the direction as associated data.
"""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from rootlet.secagg.errors import SecureRoundRefusedError
from rootlet.secagg.shamir import SHARE_BYTES

DOMAIN = b"rootlet-secagg-1 "
NONCE_BYTES = 12
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + 16


def place(index: int) -> bytes:
    """A device's place in the roster, 32 bits big-endian."""
    return index.to_bytes(4, "big")


def derive(secret: bytes, label: bytes, context: bytes, *places: int) -> bytes:
    """A key of 32 bytes from a secret of 32 uniform bytes, for one use.

    HKDF-Expand alone (RFC 5869, 3.3) after SHA-256 as the extraction: secrets here are an X25519
    agreement or 32 uniform bytes.
    """
    info = DOMAIN + label + context + b"".join(map(place, sorted(places)))
    return HKDFExpand(SHA256(), 32, info).derive(hashlib.sha256(secret).digest())


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The X25519 agreement (RFC 7748), 32 bytes.

    Raises:
        SecureRoundRefusedError: The public key is of low order.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecureRoundRefusedError(f"a public key that agrees with nobody: {error}") from error


def seal(key: bytes, plain: bytes, context: bytes, source: int, target: int) -> bytes:
    """Encrypt shares from one device to another: nonce, ciphertext and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context + place(source) + place(target))


def unseal(key: bytes, sealed: bytes, context: bytes, source: int, target: int) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        SecureRoundRefusedError: It was changed, or is from or for another device or round.
    """
    try:
        return AESGCM(key).decrypt(
            sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context + place(source) + place(target)
        )
    except (InvalidTag, ValueError):
        raise SecureRoundRefusedError(
            f"the shares from device {source} were changed on their way"
        ) from None
