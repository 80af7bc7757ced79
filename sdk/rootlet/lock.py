"""One user of a directory at a time, in any process; the system unlocks it when a process ends."""

import fcntl
import os
from pathlib import Path
from typing import Self

from rootlet.errors import StateError


class DirectoryLock:
    """A lock on the file ``lock`` of a directory, with the process id of its holder inside.

    Args:
        directory: Made if absent, readable by its owner only.

    Raises:
        StateError: Another one holds the lock, or the directory cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"{directory} cannot keep state ({error.strerror or error}): "
                "give a directory that this user may write to"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace") or "unknown"
            os.close(self._file)
            raise StateError(
                f"{directory} is in use by process {holder}: close that client or server first, "
                "or give this one a state directory of its own"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode("ascii"), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlocks; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
