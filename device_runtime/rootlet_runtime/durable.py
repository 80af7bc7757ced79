"""Durable files: written aside, fsynced, renamed, and the folder fsynced.

A crash at any point leaves the old file or the new one, whole.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(
    path: Path,
    content: bytes | Callable[[BinaryIO], None],
    mode: int = 0o600,
    *,
    settle: bool = True,
) -> None:
    """Writes a new file beside ``path``, then puts it in ``path``'s place.

    ``content`` is the bytes, or a function that writes them. Without ``settle`` the folder is not
    fsynced: a power cut, though no crash of the process, may bring the old file back.

    Raises:
        OSError: the disk refused; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    if settle:
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
