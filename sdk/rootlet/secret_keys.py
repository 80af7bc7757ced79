"""The secrets of one state directory, how keys come out of them, and how a file is sealed."""

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass
from typing import Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rootlet.errors import KeystoreError

MAGIC = b"rootlet sealed 1\n"
KEY_BYTES, KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES = 32, 8, 12, 16
SEALED_BYTES = len(MAGIC) + KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES
"""By how much a sealed file is longer."""

Part = Literal["examples", "learnt"]
PARTS: tuple[Part, ...] = ("examples", "learnt")


class UnsealError(Exception):
    """Why a file was not opened; its caller says which file, and what to do."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Secrets:
    """What a key store has of a state directory.

    Attributes:
        examples: Of what can be read back as an example.
        learnt: Of the rest.
        erased: Key id (hex) of the examples' secret before this one.
        plain: Parts that may still have files from before the directory was sealed.
    """

    examples: bytes
    learnt: bytes
    erased: str = ""
    plain: tuple[str, ...] = ()

    @classmethod
    def new(cls) -> Self:
        """New ones."""
        return cls(examples=new_secret(), learnt=new_secret(), plain=PARTS)

    def dumps(self) -> str:
        """As text for a key store."""
        encoded = {part: base64.b64encode(self.of(part)).decode() for part in PARTS}
        return json.dumps({**asdict(self), **encoded})

    @classmethod
    def loads(cls, text: str) -> Self:
        """Out of the text.

        Raises:
            KeystoreError: It is another one.
        """
        try:
            fields = json.loads(text)
            examples, learnt = (base64.b64decode(fields[part], validate=True) for part in PARTS)
            if len(examples) != KEY_BYTES or len(learnt) != KEY_BYTES:
                raise ValueError("a key of another length")
            return cls(
                examples=examples,
                learnt=learnt,
                erased=str(fields["erased"]),
                plain=tuple(str(part) for part in fields["plain"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise KeystoreError(
                "what the key store has is not a key of rootlet: restore it from a copy"
            ) from error

    def of(self, part: Part) -> bytes:
        """The secret of a part."""
        return self.examples if part == "examples" else self.learnt


def new_secret() -> bytes:
    """32 random bytes of the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def derived(secret: bytes, purpose: str, salt: bytes = b"") -> bytes:
    """``HKDF-SHA-256(secret, salt, "rootlet 1 <purpose>")``, 32 bytes (RFC 5869)."""
    info = f"rootlet 1 {purpose}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt or None, info=info).derive(secret)


def key_id(secret: bytes) -> bytes:
    """Names a secret in 8 bytes."""
    return derived(secret, "id")[:KEY_ID_BYTES]


def seal(secret: bytes, purpose: str, name: str, plain: bytes) -> bytes:
    """A sealed file, as `rootlet.vault` specifies it."""
    nonce, aead = os.urandom(NONCE_BYTES), AESGCM(derived(secret, purpose))
    return MAGIC + key_id(secret) + nonce + aead.encrypt(nonce, plain, _place(purpose, name))


def unseal(secret: bytes, purpose: str, name: str, sealed: bytes) -> bytes:
    """What was sealed.

    Raises:
        UnsealError: It is not sealed, was changed, or is of another name, purpose or key.
    """
    start = len(MAGIC) + KEY_ID_BYTES
    if len(sealed) < SEALED_BYTES or not sealed.startswith(MAGIC):
        raise UnsealError("is not sealed")
    if sealed[len(MAGIC) : start] != key_id(secret):
        raise UnsealError("is sealed with another key")
    nonce, body = sealed[start : start + NONCE_BYTES], sealed[start + NONCE_BYTES :]
    try:
        return AESGCM(derived(secret, purpose)).decrypt(nonce, body, _place(purpose, name))
    except InvalidTag:
        raise UnsealError("was changed, renamed or moved since it was sealed") from None


def _place(purpose: str, name: str) -> bytes:
    return MAGIC + f"{purpose}\0{name}".encode()
