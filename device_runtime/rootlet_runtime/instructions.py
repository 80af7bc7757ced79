"""Instructions that the calling thread executes, counted by the processor where Linux lets us.

``perf_event_open(2)`` with the hardware event "instructions", user code alone; an engine with one
thread runs in the caller's, and threads that start later are counted too. Virtual machines and
Android often have no such counter, and ``kernel.perf_event_paranoid`` above 2 forbids it: there is
none then, and whoever wants a figure estimates it from the operations (``rootlet_runtime.energy``).
"""

import ctypes
import os
import platform
import struct
import sys
from typing import Self

SYSCALLS = {"x86_64": 298, "aarch64": 241, "armv7l": 364, "riscv64": 241}
HARDWARE, SOFTWARE = 0, 1
INSTRUCTIONS, TASK_CLOCK_NS = (HARDWARE, 1), (SOFTWARE, 1)
_ATTR_BYTES = 64  # PERF_ATTR_SIZE_VER0: every kernel takes it
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6


class InstructionCounter:
    """Counts from ``with`` on.

    Args:
        event: type and number of the event; another one than instructions serves tests.
    """

    def __init__(self, event: tuple[int, int] = INSTRUCTIONS) -> None:
        self._event = event
        self._file: int | None = None

    def __enter__(self) -> Self:
        self._file = _open(*self._event)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read(self) -> int | None:
        """Since ``with``; None where nothing counts."""
        if self._file is None:
            return None
        try:
            (count,) = struct.unpack("=Q", os.read(self._file, 8))
        except (OSError, struct.error):
            return None
        return int(count)


def _open(kind: int, number: int) -> int | None:
    syscall = SYSCALLS.get(platform.machine())
    if syscall is None or not sys.platform.startswith("linux"):
        return None
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV
    fields = struct.pack("=IIQQQQQ", kind, _ATTR_BYTES, number, 0, 0, 0, flags)
    attributes = ctypes.create_string_buffer(fields, _ATTR_BYTES)
    this_thread, any_processor, no_group, close_on_exec = 0, -1, -1, 8
    file = ctypes.CDLL(None, use_errno=True).syscall(
        ctypes.c_long(syscall), attributes, this_thread, any_processor, no_group,
        ctypes.c_ulong(close_on_exec),
    )  # fmt: skip
    return int(file) if file >= 0 else None
