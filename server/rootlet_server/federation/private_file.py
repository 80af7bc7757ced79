"""Files that hold secrets: readable by their owner only, from their first byte on."""

import os
from pathlib import Path

from rootlet_runtime.durable import fsync_folder


def write_private(path: Path, content: bytes) -> None:
    """Write `content` aside with mode 0600, and put it in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_folder(path.parent)
