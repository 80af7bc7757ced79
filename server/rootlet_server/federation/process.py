"""A child process with a lifeline, its own process group and a log file."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

_STOP_GRACE_S = 5.0
_LOG_TAIL_BYTES = 4000


class ChildProcess:
    """A module of this package, run as a program.

    Guarantees: `stop()` and `kill()` leave no process of the child's group behind, and the child
        ends by itself when this process dies, also by SIGKILL.

    Args:
        module: The module's full name; it watches its lifeline (`lifeline.py`).
        arguments: What it takes.
        log_path: Receives the child's output, appended.
        environment: Variables added to this process's own.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
                bufsize=0,
            )
        self._stdin = cast(IO[bytes], self._popen.stdin)

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._popen.poll()

    def log_tail(self) -> str:
        """The last 4000 bytes of the log."""
        data = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:]
        return data.decode(errors="replace").strip()

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it still runs after `timeout_s` seconds."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def send_line(self, line: str) -> None:
        """Write one line to the child's standard input; the lifeline stays open.

        A child that has ended already is not an error here: `returncode` tells.
        """
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(line.encode() + b"\n")

    def stop(self) -> None:
        """Ask the child to end, kill what is left of its group after five seconds, and reap it.

        A second call does nothing.
        """
        if self._stdin.closed:
            return
        if self._popen.poll() is None:
            self._popen.terminate()
            self.wait(_STOP_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End the child's group at once, and reap the child. A second call does nothing."""
        if self._stdin.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._stdin.close()

    def __enter__(self) -> Self:
        """The running child."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()
