"""Work beside the app: daemon threads of low priority whose errors reach nobody by surprise."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

NICENESS = 10
"""How far a background thread steps back, on the scale of nice(1)."""

T = TypeVar("T")


def start(name: str, work: Callable[[], T]) -> Future[T]:
    """Runs ``work`` in a daemon thread of lowered priority.

    Returns:
        What ``work`` will return or raise.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    threading.Thread(target=_run, args=(work, future), name=name, daemon=True).start()
    return future


def _run(work: Callable[[], T], future: Future[T]) -> None:
    step_back()
    try:
        result = work()
    except BaseException as error:  # the future carries it to whoever asks
        future.set_exception(error)
    else:
        future.set_result(result)


def step_back() -> None:
    """Lowers the priority of the calling thread, where the system has priorities of threads."""
    if sys.platform == "linux":  # elsewhere the call would concern the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
