"""The seam for encryption at rest: what every byte of a kept file passes through.

The runtime itself encrypts nothing; who holds a key hands in a cipher (`rootlet.vault`).
"""

from typing import Protocol


class Cipher(Protocol):
    """Seals what is written and opens what is read; ``name`` binds a file to its place."""

    def seal(self, name: str, plain: bytes) -> bytes:
        """What goes to the disk."""

    def open(self, name: str, sealed: bytes) -> bytes:
        """What ``seal`` was given.

        Raises:
            CheckpointError: it was changed, or is of another name or key.
        """


class Plain:
    """No encryption."""

    def seal(self, name: str, plain: bytes) -> bytes:
        """The same bytes."""
        del name
        return plain

    def open(self, name: str, sealed: bytes) -> bytes:
        """The same bytes."""
        del name
        return sealed


PLAIN = Plain()
