"""Where an encrypted store ends, sealed: what tells a cut end and an older state from a crash."""

import contextlib
import json
from pathlib import Path
from typing import Protocol

from rootlet.segment import RecordCipher
from rootlet.vault import Vault
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import CheckpointError

FILE, ANCHOR = "head", "examples-openings"
_ANCHOR_BYTES = 8


class StoreCipher(RecordCipher, Protocol):
    """Seals records, and can make all of them unreadable."""

    @property
    def vault(self) -> Vault:
        """Whose key source may anchor the head."""

    def renew(self) -> None:
        """Make everything that was sealed unreadable."""


class StoreHead:
    """The number of the next example, and how often the store was opened.

    It is written after the examples that it counts: after a crash it may count too few, never too
    many. A store that was put back in an older state counts fewer openings than the key source has
    noted, where that lies elsewhere.

    Args:
        directory: Of the store.
        cipher: Seals it.

    Attributes:
        next: What it said when it was opened; 0 where there was none.
    """

    def __init__(self, directory: Path, cipher: StoreCipher) -> None:
        self._path, self._cipher = directory / FILE, cipher
        self.next, self._openings, self._broken = 0, 0, False
        with contextlib.suppress(FileNotFoundError):
            self._read()

    def check(self, found: int) -> list[str]:
        """What is wrong, in plain words; counts the opening.

        Args:
            found: The number of the next example by the segments.
        """
        notes = []
        if self._broken:
            notes.append("the head does not open: it was changed, or sealed with another key")
        if self.next > found:
            notes.append(
                f"{self.next - found} examples that were kept are gone from the end: the files "
                "were cut or replaced"
            )
        source = self._cipher.vault.source
        if source.anchors:
            noted = int.from_bytes(source.load(ANCHOR) or b"", "big")
            if self._openings < noted:
                notes.append(
                    f"the store was put back in an older state: it was opened {noted} times, and "
                    f"says {self._openings}"
                )
            self._openings = max(self._openings, noted)
        self._openings += 1
        self.keep(max(self.next, found))
        if source.anchors:
            source.keep(ANCHOR, self._openings.to_bytes(_ANCHOR_BYTES, "big"))
        return notes

    def keep(self, next_: int) -> None:
        """Note the number of the next example."""
        content = json.dumps({"next": next_, "openings": self._openings}).encode()
        write_atomically(self._path, self._cipher.seal(FILE, content))

    def _read(self) -> None:
        try:
            found = json.loads(self._cipher.open(FILE, self._path.read_bytes()))
            self.next, self._openings = int(found["next"]), int(found["openings"])
        except (CheckpointError, ValueError, KeyError, TypeError):
            self._broken = True
