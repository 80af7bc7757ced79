"""Who does the work: this process, several processes, or Ray actors over a cluster.

A crew maps tasks to replies in the order of the tasks, a few ahead at a time, so that a cohort of
any size passes through bounded memory and sums are made in one order whoever made the parts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

from rootlet_server.errors import PreAggregationError, SimulationConfigError, WorkerError
from rootlet_server.simulation.work import ChunkReply, ChunkTask, Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

AHEAD = 2  # tasks that wait for each worker beside the one that it does
CONNECT_ATTEMPTS = 5
_RAY, _RAY_LOCAL = "ray://", "ray://local"
_worker: Worker | None = None


class Crew(Protocol):
    """Workers with a job."""

    size: int

    def map(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkReply]:
        """The replies, in the order of the tasks."""

    def close(self) -> None:
        """Ends the workers."""


class OwnCrew:
    """This process.

    Args:
        worker: does the work.
    """

    size = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def map(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkReply]:
        """One after the other."""
        return map(self._worker.run, tasks)

    def close(self) -> None:
        """Nothing is left to end."""


class ProcessCrew:
    """Processes of this machine, each with one thread.

    Args:
        job: for all of them.
        size: how many.

    Raises:
        SimulationConfigError: the population cannot be sent to another process.
    """

    def __init__(self, job: Job, size: int) -> None:
        self.size = size
        packed = _packed(job)
        self._pool = ProcessPoolExecutor(
            size,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(packed,),
        )

    def map(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkReply]:
        """Several at a time.

        Raises:
            WorkerError: a process died.
        """
        try:
            yield from _in_order(
                tasks,
                submit=lambda task: self._pool.submit(_run, task),
                collect=lambda future: future.result(),
                ahead=self.size * AHEAD,
            )
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process died (killed, or out of memory); finished rounds are kept where "
                "a state directory was given: run the same simulation again, with fewer workers "
                "if memory was short"
            ) from error

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class RayCrew:
    """Ray actors over a cluster; they return sums, never single updates.

    Args:
        job: for all of them.
        address: a Ray client's.
        size: how many actors; None for one on each core of the cluster.

    Raises:
        WorkerError: Ray is not there.
    """

    def __init__(self, job: Job, address: str, size: int | None = None) -> None:
        import ray as library  # noqa: PLC0415 (an extra)

        ray: Any = library  # half of it is typed
        self._ray = ray
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns
        self._started = not ray.is_initialized()
        try:
            if self._started:
                _connect(ray, address)
            self.size = size or max(1, int(ray.cluster_resources().get("CPU", 1)))
            packed = ray.put(_packed(job))
            actor = ray.remote(num_cpus=1)(_RayWorker)
            self._actors: list[Any] = [actor.remote(packed) for _ in range(self.size)]
        except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
            raise WorkerError(f"{address}: Ray cannot be reached ({error})") from error

    def map(self, tasks: Iterable[ChunkTask]) -> Iterator[ChunkReply]:
        """Each actor in turn.

        Raises:
            PreAggregationError: single updates are wanted; they would all cross the network.
            WorkerError: an actor died.
        """
        turn = 0

        def submit(task: ChunkTask) -> Any:
            nonlocal turn
            if task.training is not None and not task.upload.partial:
                raise PreAggregationError(
                    "this strategy needs every client's update, and Ray actors return sums only; "
                    "use workers=N on one machine, or a strategy that averages"
                )
            turn = (turn + 1) % self.size
            return self._actors[turn].run.remote(task)

        try:
            yield from _in_order(
                tasks, submit=submit, collect=self._ray.get, ahead=self.size * AHEAD
            )
        except self._ray.exceptions.RayActorError as error:
            raise WorkerError(
                "a Ray actor died; finished rounds are kept where a state directory was given: "
                "run the same simulation again"
            ) from error
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error

    def close(self) -> None:
        """Ends the actors, and Ray where it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connects, again where the cluster answers and gives up.

    It forks a server for each client, and gRPC's handlers of a fork end some before they start.
    """
    for _ in range(CONNECT_ATTEMPTS - 1):
        with contextlib.suppress(ConnectionAbortedError):
            ray.init(address=address, log_to_driver=False, logging_level="error")
            return
    ray.init(address=address, log_to_driver=False, logging_level="error")


def hire(job: Job, workers: int | str) -> Crew:
    """The crew that ``workers`` names: a number of processes, or an address of Ray.

    Raises:
        SimulationConfigError: neither.
        NotVectorisableError: see ``Worker``.
    """
    if isinstance(workers, str):
        if not workers.startswith(_RAY):
            raise SimulationConfigError(
                f"workers {workers!r}: a number of processes, or 'ray://HOST:PORT'"
            )
        if workers == _RAY_LOCAL:
            raise SimulationConfigError(
                "workers 'ray://local': Ray 2.55 listens on every address of a machine, also where "
                "it is told 127.0.0.1, so it is not started from here; use workers=N, or start a "
                "cluster behind a firewall and name it by ray://HOST:PORT"
            )
        return RayCrew(job, workers)
    if workers < 1:
        raise SimulationConfigError(f"workers {workers}: must be at least 1")
    return OwnCrew(Worker(job)) if workers == 1 else ProcessCrew(job, workers)


def _in_order(
    tasks: Iterable[ChunkTask],
    *,
    submit: Callable[[ChunkTask], Any],
    collect: Callable[[Any], ChunkReply],
    ahead: int,
) -> Iterator[ChunkReply]:
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) > ahead:
            yield collect(waiting.popleft())
    while waiting:
        yield collect(waiting.popleft())


def _packed(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise SimulationConfigError(
            f"the population cannot be sent to other processes ({error}); make its functions "
            "those of a module, or use workers=1"
        ) from error


def _begin(packed: bytes) -> None:
    global _worker  # noqa: PLW0603 (one worker a process)
    _worker = Worker(pickle.loads(packed))  # noqa: S301 (our own parent's bytes)


def _run(task: ChunkTask) -> ChunkReply:
    if _worker is None:
        raise WorkerError("this process has no job")
    return _worker.run(task)


class _RayWorker:
    def __init__(self, packed: bytes) -> None:
        self._worker = Worker(pickle.loads(packed))  # noqa: S301 (our own driver's bytes)

    def run(self, task: ChunkTask) -> ChunkReply:
        return self._worker.run(task)
