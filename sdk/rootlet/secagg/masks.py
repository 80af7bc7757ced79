"""Masks: keystreams that are added to whole numbers modulo 2^16 or 2^32.

A mask is the keystream of AES-256-CTR (NIST SP 800-38A) under a key that is used for nothing else,
from counter 0, read as little-endian words. Key by key the stream is made in pieces that stay in
the processor's cache and are added where they lie, so that a mask of a million values never exists
as a whole.

Where the processor has no AES instructions the round's plan may name ``chacha20`` (RFC 8439); all
devices of a round use the same.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

STREAMS = ("aes-256-ctr", "chacha20")
CHUNK_BYTES = 128 * 1024
_ZEROS = bytes(CHUNK_BYTES)

Words = npt.NDArray[np.unsignedinteger[Any]]


def add_masks(values: Words, keys: Iterable[tuple[bytes, int]], stream: str = STREAMS[0]) -> None:
    """Add or subtract the masks of ``keys`` in place, modulo the words' size.

    Args:
        values: uint16 or uint32, [d], contiguous.
        keys: 32 bytes each, with 1 to add its mask and -1 to subtract it.
        stream: The cipher.
    """
    ciphers = [(_encryptor(key, stream), sign) for key, sign in keys]
    little = values.dtype.newbyteorder("<")
    piece = bytearray(CHUNK_BYTES)
    mask = np.frombuffer(piece, little)
    step = CHUNK_BYTES // values.itemsize
    for start in range(0, len(values), step):
        part = values[start : start + step]
        zeros = _ZEROS if len(part) == step else _ZEROS[: part.nbytes]
        words = mask[: len(part)]
        for cipher, sign in ciphers:
            cipher.update_into(zeros, piece)
            if sign > 0:
                np.add(part, words, out=part, casting="unsafe")
            else:
                np.subtract(part, words, out=part, casting="unsafe")


def keystream(key: bytes, size: int, stream: str = STREAMS[0]) -> bytes:
    """The first ``size`` bytes of a key's stream."""
    return _encryptor(key, stream).update(bytes(size))


def _encryptor(key: bytes, stream: str) -> CipherContext:
    if stream == STREAMS[1]:
        return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
