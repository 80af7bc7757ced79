"""Works off the cells in worker processes of one thread each."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rootlet_server.bench.store import Store

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _run(cell: Any) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    record: dict[str, Any] = cell.run()
    return record


def work_off(
    cells: Iterable[Any],
    store: Store,
    *,
    workers: int,
    stored_only: bool = False,
    follow: Callable[[Any, dict[str, Any]], list[Any]] = lambda cell, record: [],
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[dict[str, Any]]:
    """Run every cell that the store does not hold yet.

    Args:
        cells: things with a ``key`` and a ``run()`` that returns a record; they travel by pickle
            between our own processes.
        store: where records go.
        workers: processes.
        stored_only: leave out what the store does not hold, and run nothing.
        follow: cells that a finished one calls for.
        progress: called with (finished, all known, the latest cell's name).

    Returns:
        the records of all cells, the stored ones too.
    """
    waiting, found = list(cells), []
    running: dict[Future[dict[str, Any]], Any] = {}
    total = done = 0
    for name in ONE_THREAD:  # read by the workers' libraries when they load
        os.environ[name] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while waiting or running:
            for cell in waiting:
                if stored_only and cell.key not in store:
                    continue
                total += 1
                if cell.key in store:
                    running[_finished(store[cell.key])] = cell
                else:
                    running[pool.submit(_run, cell)] = cell
            waiting = []
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell, record = running.pop(future), future.result()
                if cell.key not in store:
                    store.add(record)
                found.append(record)
                waiting += follow(cell, record)
                done += 1
                progress(done, total, f"{cell.task} · {cell.arm} · seed {cell.seed}")
    return found


def _finished(record: dict[str, Any]) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    future.set_result(record)
    return future
