"""Ends a child process when its parent is gone, however the parent went.

The parent holds the other end of the child's standard input and never closes it. Unlike
PR_SET_PDEATHSIG this does not depend on which thread started the child, and works on every Unix.
"""

import os
import signal
import sys
import threading
import time

_GRACE_S = 5.0


def watch_lifeline() -> None:
    """Start a thread that ends this process when standard input ends."""
    threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()


def read_line() -> str | None:
    """The first line of standard input, or None if the parent is gone.

    Read byte by byte, so that nothing after the line is taken from the lifeline.
    """
    line = bytearray()
    while (byte := os.read(sys.stdin.fileno(), 1)) != b"\n":
        if not byte:
            return None
        line += byte
    return line.decode()


def _end_with_parent() -> None:
    """Block until standard input ends, then end this process: asked first, killed if it hangs."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
