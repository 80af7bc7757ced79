"""What a worker does: load a bundle and a population once, then train chunk after chunk.

The same object works in this process, in a process of its own, and in a Ray actor.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rootlet_runtime.bundle import Bundle
from rootlet_server.errors import NotVectorisableError
from rootlet_server.simulation.batching import client_seeds
from rootlet_server.simulation.device_engine import DeviceEngine
from rootlet_server.simulation.engine import ChunkResult, measured, one_thread, train_chunk
from rootlet_server.simulation.step import load_step
from rootlet_server.simulation.uploads import Partial, Upload, sum_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.controls import ControlTask
    from rootlet_server.simulation.population import CheckedPopulation, Examples
    from rootlet_server.simulation.step import StackedStep

    Arrays = Mapping[str, npt.NDArray[Any]]


COLUMNS = (
    "client", "examples", "steps", "loss", "metric", "received", "trained", "finite",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is given once.

    Attributes:
        bundle: the bundle's bytes; a path on this machine serves as well.
        population: the clients, checked.
        seed: of the simulation.
        vectorise: False trains one client at a time, by the device runtime itself.
    """

    bundle: bytes | Path
    population: CheckedPopulation
    seed: int
    vectorise: bool


@dataclass(frozen=True, kw_only=True)
class ChunkTask:
    """One chunk of a round.

    Attributes:
        clients: sorted by number.
        round: counted from 1.
        received: the adapter that the server sent.
        training: what the clients are asked to do; None to evaluate the adapter instead.
        upload: how updates leave the chunk.
        state, steps_before: see ``engine.train_chunk``; returned, where given.
        control: SCAFFOLD's correction; None for none.
    """

    clients: tuple[int, ...]
    round: int
    received: Arrays
    training: LocalTraining | None
    upload: Upload
    state: Arrays | None = None
    steps_before: npt.NDArray[np.int64] | None = None
    control: ControlTask | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkReply:
    """What a worker gives back.

    Attributes:
        columns: one value for each client, by name; clients without examples come last.
        adapters: [K, ...] by name, of the clients with examples, where every update is wanted.
        partial: the sums, where these are.
        state: the optimisers', where they are kept.
        control: what changed in each one's control variate, [K, ...] by name; None for none.
    """

    columns: dict[str, npt.NDArray[Any]]
    adapters: dict[str, npt.NDArray[np.float32]] | None = None
    partial: Partial | None = None
    state: dict[str, npt.NDArray[np.float32]] | None = None
    control: dict[str, npt.NDArray[np.float32]] | None = None


class Worker:
    """Trains chunks.

    Args:
        job: what all workers share.

    Raises:
        NotVectorisableError: the model cannot be stacked, and ``job.vectorise`` asks for it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._bundle = _open(job.bundle)
        self.step: StackedStep | None = None
        self._device: DeviceEngine | None = None
        if job.vectorise:
            self.step = load_step(self._bundle)
        else:
            self._device = DeviceEngine(self._bundle)

    def run(self, task: ChunkTask) -> ChunkReply:
        """One chunk.

        Raises:
            PopulationError: a client's examples do not fit the bundle.
        """
        loaded = {client: self._job.population.examples(client) for client in task.clients}
        having = tuple(client for client, (x, _) in loaded.items() if len(x))
        if len(having) < len(loaded):
            return _without(set(loaded) - set(having), self.run(_only(task, having)))
        if not having:
            return ChunkReply(columns={name: np.empty(0) for name in COLUMNS})
        examples = list(loaded.values())
        if task.training is None:
            return self._evaluate(task, examples)
        seeds = client_seeds(self._job.seed, task.round, task.clients)
        if self.step is not None:
            state = task.state
            result = train_chunk(
                self.step,
                task.received,
                examples,
                seeds,
                task.training,
                state=None
                if state is None
                else {name: torch.from_numpy(value) for name, value in state.items()},
                steps_before=task.steps_before,
                control=task.control,
            )
        else:
            result = self._devices().train(
                task.received, examples, seeds, task.training, task.control
            )
        return _reply(task, result, seeds)

    def _evaluate(self, task: ChunkTask, examples: list[Any]) -> ChunkReply:
        sizes = np.array([len(x) for x, _ in examples])
        loss, metric = self.measure(task.received, examples)
        nothing = np.full(len(sizes), np.nan)
        values = (task.clients, sizes, 0 * sizes, loss, nothing, metric, nothing, np.isfinite(loss))
        return ChunkReply(
            columns={name: np.array(v) for name, v in zip(COLUMNS, values, strict=True)}
        )

    def measure(
        self, adapter: Arrays, examples: Sequence[Examples]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean loss and metric of one adapter on each client's examples, [K] each."""
        if self.step is None:
            return self._devices().evaluate(adapter, examples)
        with one_thread():
            x = self.step.encode(torch.from_numpy(np.concatenate([x for x, _ in examples])))
            y = torch.from_numpy(np.concatenate([y for _, y in examples]))
            shared = {name: torch.from_numpy(np.asarray(value)) for name, value in adapter.items()}
            return measured(self.step, shared, x, y, [len(x) for x, _ in examples], shared=True)

    def _devices(self) -> DeviceEngine:
        if self._device is None:
            raise NotVectorisableError("this worker has no device engine; pass vectorise=False")
        return self._device


def _only(task: ChunkTask, clients: tuple[int, ...]) -> ChunkTask:
    """The task for some of its clients."""
    rows = np.isin(task.clients, clients)
    return replace(
        task,
        clients=clients,
        state=None if task.state is None else {k: v[rows] for k, v in task.state.items()},
        steps_before=None if task.steps_before is None else task.steps_before[rows],
        control=None if task.control is None else task.control.of(rows),
    )


def _without(empty: set[int], reply: ChunkReply) -> ChunkReply:
    """The reply with the clients that have no examples as lines of their own, at the end."""
    more = {name: np.full(len(empty), np.nan) for name in COLUMNS}
    more["client"] = np.array(sorted(empty))
    more["examples"] = more["steps"] = np.zeros(len(empty), np.int64)
    more["finite"] = np.ones(len(empty), bool)
    columns = {name: np.concatenate([reply.columns[name], more[name]]) for name in reply.columns}
    return replace(reply, columns=columns)


def _reply(task: ChunkTask, result: ChunkResult, seeds: list[int]) -> ChunkReply:
    columns = {
        "client": np.array(task.clients, np.int64),
        "examples": result.examples,
        "steps": result.steps,
        "loss": result.loss,
        "metric": result.metric,
        "received": result.received,
        "trained": result.trained,
        "finite": result.finite,
    }
    kept = None
    if task.state is not None:
        kept = {name: value.numpy() for name, value in result.state.items()}
    if not task.upload.partial:
        adapters = {name: value.numpy() for name, value in result.adapter.items()}
        control = None
        if result.control is not None:
            control = {name: value.numpy() for name, value in result.control.items()}
        return ChunkReply(columns=columns, adapters=adapters, state=kept, control=control)
    partial = sum_up(
        task.upload, result.adapter, task.received, result.examples, result.finite, seeds
    )
    return ChunkReply(columns=columns, partial=partial, state=kept)


def _open(bundle: bytes | Path) -> Bundle:
    """The bundle was verified by who made the job: here it is only read again."""
    if isinstance(bundle, Path):
        return Bundle.load(bundle, trusted_keys=[], allow_unsigned=True)
    with tempfile.NamedTemporaryFile(prefix="rootlet-simulation-", suffix=".rootlet") as file:
        file.write(bundle)
        file.flush()
        return Bundle.load(file.name, trusted_keys=[], allow_unsigned=True)  # mapped: it stays
