"""What a store knows of its segments: in the folder alone, or in a sealed head.

The head of a sealed store is one file, replaced atomically after each write and before what it no
longer names is unlinked. It has a generation, which grows by one, the number of the next example,
and each segment with the hash of its header, its records, the tag of the last one and its time.

    records written, fsynced ──► head replaced ──► generation anchored ──► old segments unlinked

A crash between two of these leaves records beyond the head, in one segment at most, or segments
before it: the first are taken if they are authentic, the second removed. So does a power cut, for
the folder is fsynced before a generation is anchored, a segment begun or one unlinked, and not
each time. Anything else that does not agree with the head was changed. Where the vault's key store
anchors, a head older than the anchor is refused: somebody put an older copy of the folder back.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from rootlet import sealed_segment, secret_keys
from rootlet.errors import StoreError
from rootlet.sealed_segment import SealedSegments
from rootlet.secret_keys import UnsealError
from rootlet.segment import PlainSegments, SegmentEnd
from rootlet.vault import Vault
from rootlet_runtime.durable import fsync_folder, write_atomically

FILE = "head"
MAX_BYTES = 8192
"""Most bytes of a head of as many segments as a store may have."""

_PURPOSE, _ANCHOR = "head", "examples"


class StoreHead(Protocol):
    """What is known of a store's segments."""

    def restore(self) -> tuple[int, dict[int, SegmentEnd]]:
        """The number of the next example, and the segments by the number that names them."""

    def commit(self, following: int, ends: dict[int, SegmentEnd]) -> None:
        """Remembers them.

        Raises:
            OSError: The disk refused; what was remembered before still is.
        """

    def destroy(self) -> None:
        """Makes everything that is on the disk unreadable, where that can be done."""


class FoldersHead:
    """The folder itself: no more is known than what lies there.

    Args:
        folder: Of the segments.
        form: How they lie there.
    """

    def __init__(self, folder: Path, form: PlainSegments) -> None:
        self._folder, self._form = folder, form

    def restore(self) -> tuple[int, dict[int, SegmentEnd]]:
        """What is found."""
        paths = sorted(self._folder.glob("*" + self._form.suffix))
        return 0, {int(path.stem): self._form.found(path) for path in paths}

    def commit(self, following: int, ends: dict[int, SegmentEnd]) -> None:
        """Nothing to remember."""

    def destroy(self) -> None:
        """Nothing can be done."""


class SealedHead:
    """The head of a sealed store.

    Args:
        folder: Of the segments.
        form: How they lie there.
        vault: Has the key and the anchor.
    """

    def __init__(self, folder: Path, form: SealedSegments, vault: Vault) -> None:
        self._folder, self._form, self._vault = folder, form, vault
        self._path = folder / FILE
        self._anchor = vault.anchor(_ANCHOR)
        self._generation = 0

    def restore(self) -> tuple[int, dict[int, SegmentEnd]]:
        """What the head says, held to the files; a new head where nothing was there.

        Raises:
            StoreError: The files are not those that were written, or older ones.
        """
        self._finish_erasing()
        found = self._read()
        if found is None:
            self.commit(0, {})
            return 0, {}
        self._generation, anchored = found["generation"], self._anchored()
        if self._generation < anchored:
            raise self._refused(
                f"has generation {self._generation}, and the key store knows generation "
                f"{anchored}: an older copy was put in its place"
            )
        if self._generation > anchored:
            self._keep_anchored()
        ends = {row[0]: self._held_to(*row) for row in found["segments"]}
        self._sweep(found["next"], ends)
        return found["next"], ends

    def commit(self, following: int, ends: dict[int, SegmentEnd]) -> None:
        """Replaces the head, then anchors its generation.

        Raises:
            OSError: The disk refused; the head is as it was.
        """
        self._generation += 1  # also of a head that failed: no two have the same
        rows = [
            [end.first, _sha256(end.header), end.count, end.tag.hex(), end.newest]
            for end in ends.values()
        ]
        content = {"generation": self._generation, "next": following, "segments": rows}
        raw = json.dumps(content, separators=(",", ":")).encode()
        sealed = self._vault.seal("examples", _PURPOSE, FILE, raw)
        write_atomically(self._path, sealed, settle=self._anchor.anchors)
        self._keep_anchored()

    def destroy(self) -> None:
        """Destroys the key; generations begin anew.

        Raises:
            KeystoreError: The key store refuses; nothing was destroyed.
        """
        self._vault.erase_examples()
        self._generation = 0

    def _keep_anchored(self) -> None:
        self._anchor.keep(f"{self._vault.id_of('examples').hex()} {self._generation}")

    def _finish_erasing(self) -> None:
        """Removes what an erased key sealed: a crash came between its end and that of the files."""
        paths = [*self._folder.glob("*" + self._form.suffix), *self._folder.glob(FILE)]
        left = [path for path in paths if _key_id(path) == self._vault.erased_id]
        for path in left:
            path.unlink()
        if left:
            fsync_folder(self._folder)

    def _read(self) -> dict[str, Any] | None:
        """The head's content; None for a store that was never written."""
        if not self._path.exists():
            if any(self._folder.glob("*" + self._form.suffix)) or self._anchored():
                raise self._refused("is missing")
            return None
        try:
            raw = self._vault.unseal("examples", _PURPOSE, FILE, self._path.read_bytes())
        except UnsealError as error:
            raise self._refused(str(error)) from None
        content: dict[str, Any] = json.loads(raw)
        return content

    def _anchored(self) -> int:
        """The generation that the key store knows under the present key; 0 for none."""
        key_id, _, generation = (self._anchor.read() or "").partition(" ")
        return int(generation) if key_id == self._vault.id_of("examples").hex() else 0

    def _held_to(
        self, first: int, header_sha256: str, count: int, tag: str, newest: int
    ) -> SegmentEnd:
        """A segment of the head, whose file must be there, be that one and be long enough."""
        path = self._path_of(first)
        if not path.exists():
            raise self._refused(f"names {path.name}, which is missing")
        header = self._form.header(path)
        end = SegmentEnd(
            first=first, header=header, count=count, tag=bytes.fromhex(tag), newest=newest
        )
        if _sha256(header) != header_sha256:
            raise self._refused(f"names another {path.name}: an older file was put in its place")
        if (cut := self._cut(end)) > 0:
            raise self._refused(f"names {count} records of {path.name}: {cut} bytes are cut off")
        return end

    def _cut(self, end: SegmentEnd) -> int:
        """How many bytes a segment's file lacks; below 0 where it has more than the head knows."""
        expected = len(end.header) + end.count * self._form.record_bytes
        return expected - self._path_of(end.first).stat().st_size

    def _path_of(self, first: int) -> Path:
        return self._folder / f"{first:020d}{self._form.suffix}"

    def _sweep(self, following: int, ends: dict[int, SegmentEnd]) -> None:
        """Removes segments before the head, and empty ones.

        There may be one beyond it, begun when the head knew the one before it to its end.
        """
        beyond = []
        for path in sorted(self._folder.glob("*" + self._form.suffix)):
            if int(path.stem) in ends:
                continue
            if int(path.stem) < following or path.stat().st_size <= self._form.header_bytes:
                path.unlink()
            else:
                beyond.append(path.name)
        newest = next(reversed(ends.values()), None)
        if beyond and newest is not None and self._cut(newest) < 0:
            beyond.append("the last records before it")
        if len(beyond) > 1:
            raise self._refused(f"does not know {', '.join(beyond)}: it is an older one")

    def _refused(self, reason: str) -> StoreError:
        return StoreError(
            f"{self._path} {reason}. The examples are refused: keep the folder as evidence, and "
            "rootlet.erasure.erase_examples() begins anew"
        )


def _key_id(path: Path) -> bytes | None:
    """Names the key that sealed a file; None where the file does not say."""
    with path.open("rb") as file:
        start = file.read(64)
    for magic in (secret_keys.MAGIC, sealed_segment.MAGIC):
        if start.startswith(magic):
            return start[len(magic) : len(magic) + secret_keys.KEY_ID_BYTES]
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
