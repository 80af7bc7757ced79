"""A few named adapters: one for each task that a device knows, and their running average.

Where the task is known, its own adapter is taken and nothing is forgotten. Where it is not, there
are two answers: the average of all (one adapter, cheap), or the one with the lowest loss on recent
labelled examples (as many evaluations as there are adapters).
"""

import re
from collections.abc import Callable, Iterable

import numpy as np

from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import AdapterError
from rootlet_runtime.manifest import TensorSpec
from rootlet_runtime.tensors import Arrays, check_arrays

MAX_ADAPTERS = 16

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TASK, _AVERAGE = "task-", "average"


class AdapterBank:
    """Adapters of one bundle in a folder; each is whole on disk or absent.

    Args:
        files: where they are kept.
        specs: the bundle's adapter.
        limit: most named adapters; the average is one more.
    """

    def __init__(
        self, files: ArrayFiles, specs: Iterable[TensorSpec], *, limit: int = MAX_ADAPTERS
    ) -> None:
        self._files, self._specs, self._limit = files, tuple(specs), limit

    def tasks(self) -> list[str]:
        """The tasks that have an adapter, sorted."""
        return sorted(
            name.removeprefix(_TASK) for name in self._files.names() if name.startswith(_TASK)
        )

    def keep(self, task: str, adapter: Arrays) -> None:
        """Keeps a task's adapter in place of the one before.

        Raises:
            AdapterError: it does not fit the bundle, the name is not lower-case letters, digits,
                ``_`` and ``-``, or the bank is full.
            CheckpointError: the disk refused.
        """
        if not _NAME.fullmatch(task):
            raise AdapterError(f"task {task!r}: does not match {_NAME.pattern}")
        known = self.tasks()
        if task not in known and len(known) >= self._limit:
            raise AdapterError(
                f"task {task!r}: the bank holds {len(known)} adapters, its limit; remove one of "
                f"{', '.join(known)}"
            )
        self._files.write(_TASK + task, check_arrays(adapter, self._specs), {})

    def remove(self, task: str) -> None:
        """Forgets a task's adapter if there is one; the average keeps its part of it."""
        if task in self.tasks():
            self._files.remove(_TASK + task)

    def adapter(self, task: str) -> Arrays:
        """A task's adapter.

        Raises:
            AdapterError: the task has none.
            CheckpointError: its file is damaged.
        """
        found = self._files.read(_TASK + task) if task in self.tasks() else None
        if found is None:
            raise AdapterError(
                f"task {task!r}: has no adapter; there are {', '.join(self.tasks()) or 'none'}"
            )
        return check_arrays(found[0], self._specs)

    def add_to_average(self, adapter: Arrays) -> None:
        """Takes one more adapter into the running average: ``m <- m + (a - m) / n``.

        Averaging B is exact where A is frozen: ``mean(B) A = mean(B A)``.

        Raises:
            AdapterError: it does not fit the bundle.
            CheckpointError: the disk refused.
        """
        checked = check_arrays(adapter, self._specs)
        mean, count = self._average()
        count += 1
        if mean is not None:
            checked = {
                name: (mean[name] + (value - mean[name]) / np.float32(count)).astype(np.float32)
                for name, value in checked.items()
            }
        self._files.write(_AVERAGE, checked, {"count": count})

    def average(self) -> Arrays:
        """The mean of all adapters that were added.

        Raises:
            AdapterError: none was.
            CheckpointError: its file is damaged.
        """
        mean, _ = self._average()
        if mean is None:
            raise AdapterError("the average is empty; add_to_average adds an adapter")
        return mean

    def best(self, loss: Callable[[Arrays], float]) -> tuple[str, Arrays]:
        """The task whose adapter has the lowest loss, with the adapter; ties go to the first name.

        Args:
            loss: of an adapter, on examples of the task in question.

        Raises:
            AdapterError: the bank is empty.
        """
        if not (tasks := self.tasks()):
            raise AdapterError("the bank holds no adapter; keep() adds one")
        losses = {task: loss(self.adapter(task)) for task in tasks}
        task = min(tasks, key=lambda name: losses[name])
        return task, self.adapter(task)

    def _average(self) -> tuple[Arrays | None, int]:
        found = self._files.read(_AVERAGE)
        if found is None:
            return None, 0
        arrays, notes = found
        return check_arrays(arrays, self._specs), int(notes["count"])
