"""The simulated clients: a crew with a population, asked in chunks, with what each keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation.controls import PREFIX, ControlTask
from rootlet_server.simulation.pace import Pace
from rootlet_server.simulation.replies import bytes_of
from rootlet_server.simulation.work import ChunkReply, ChunkTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    from rootlet_runtime.bundle import Bundle
    from rootlet_server.simulation.availability import Availability
    from rootlet_server.simulation.bank import ClientBank
    from rootlet_server.simulation.batching import LocalTraining
    from rootlet_server.simulation.crews import Crew
    from rootlet_server.simulation.latency import Latency
    from rootlet_server.simulation.population import CheckedPopulation
    from rootlet_server.simulation.uploads import Upload

    Arrays = Mapping[str, npt.NDArray[Any]]
    Clients = npt.NDArray[np.int64]

STEPS = "steps"


@dataclass(kw_only=True)
class Fleet:
    """Clients that can be asked.

    Attributes:
        bundle: what they run.
        population: who they are.
        crew: who does their work.
        training: what they do where a request does not say.
        chunk_size: clients trained at once.
        latency, availability, pace: how long they take, when they are there, how rounds end.
        bank: what clients keep between rounds, the optimiser's state or SCAFFOLD's control
            variates; None where they keep nothing, as devices do by default.
        on_chunk: called with the number of clients of each finished chunk.
        bytes_each: of an adapter on the wire.
    """

    bundle: Bundle
    population: CheckedPopulation
    crew: Crew
    training: LocalTraining
    chunk_size: int
    latency: Latency | None = None
    availability: Availability | None = None
    pace: Pace = field(default_factory=Pace)
    bank: ClientBank | None = None
    on_chunk: Callable[[int], None] | None = None
    bytes_each: int = field(init=False)

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise SimulationConfigError(f"chunk_size {self.chunk_size}: must be at least 1")
        if self.training.batch_size > self.bundle.manifest.max_batch:
            raise SimulationConfigError(
                f"batch_size {self.training.batch_size}: the bundle takes at most "
                f"{self.bundle.manifest.max_batch}; compile it with a larger max_batch"
            )
        self.bytes_each = bytes_of(self.bundle.initial_adapter())

    def ask(
        self,
        clients: Clients,
        round_: int,
        received: Arrays,
        training: LocalTraining | None,
        upload: Upload,
        *,
        control: Arrays | None = None,
    ) -> Iterator[ChunkReply]:
        """The clients' work, chunk by chunk, in the order of the clients.

        Args:
            clients: sorted.
            round_: counted from 1.
            received: the adapter that the server sent.
            training: what to do; None to evaluate.
            upload: how updates leave a chunk.
            control: SCAFFOLD's mean control variate; None for none.
        """
        parts = np.split(clients, range(self.chunk_size, len(clients), self.chunk_size))
        arrays = {name: np.asarray(value, np.float32) for name, value in received.items()}
        tasks = (
            self._task(part, round_, arrays, training, upload, control=control)
            for part in parts
            if len(part)
        )
        for reply in self.crew.map(tasks):
            if self.bank is not None and training is not None:
                self._keep(self.bank, reply)
            if self.on_chunk is not None:
                self.on_chunk(len(reply.columns["client"]))
            yield reply

    def _keep(self, bank: ClientBank, reply: ChunkReply) -> None:
        """Notes what those keep whose training came out finite; the others keep what they had."""
        columns = reply.columns
        trained = columns["examples"] > 0
        good = columns["finite"][trained].astype(bool)
        own = columns["client"][trained][good].astype(np.int64)
        if not len(own):
            return
        kept = bank.read(own, bank.slots)
        if reply.state is not None and STEPS in kept:
            kept |= {name: value[good] for name, value in reply.state.items()}
            kept[STEPS] = (kept[STEPS] + columns["steps"][trained][good]).astype(np.float32)
        for name, value in (reply.control or {}).items():
            kept[PREFIX + name] = kept[PREFIX + name] + value[good]
        bank.stage(own, kept)

    @property
    def _keeps_controls(self) -> bool:
        return any(name.startswith(PREFIX) for name in self.bank.slots) if self.bank else False

    def examples(self, clients: Clients, training: LocalTraining) -> npt.NDArray[np.int64]:
        """How many examples each client trains on, epochs included."""
        return self.population.sizes(clients) * training.epochs

    def _task(
        self,
        part: Clients,
        round_: int,
        received: Arrays,
        training: LocalTraining | None,
        upload: Upload,
        *,
        control: Arrays | None,
    ) -> ChunkTask:
        state, before, correction = None, None, None
        if control is not None and not self._keeps_controls:
            raise SimulationConfigError(
                "the strategy sends control variates, and these clients keep none: simulate it by "
                "simulate(strategy=Scaffold(devices=...))"
            )
        if self.bank is not None and training is not None:
            found = self.bank.read(part, self.bank.slots)
            if STEPS in found:
                before = found.pop(STEPS).astype(np.int64)
                state = {name: v for name, v in found.items() if not name.startswith(PREFIX)}
            if control is not None:
                own = {n.removeprefix(PREFIX): v for n, v in found.items() if n.startswith(PREFIX)}
                correction = ControlTask(control, own)
        return ChunkTask(
            clients=tuple(int(client) for client in part),
            round=round_,
            received=received,
            training=training,
            upload=upload,
            state=state,
            steps_before=before,
            control=correction,
        )
