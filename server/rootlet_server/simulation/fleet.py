"""The simulated clients: a crew with a population, asked in chunks, with what each keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.errors import SimulationConfigError
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
        bank: the optimiser state that clients keep between rounds; None where they start anew,
            as devices do.
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
    ) -> Iterator[ChunkReply]:
        """The clients' work, chunk by chunk, in the order of the clients.

        Args:
            clients: sorted.
            round_: counted from 1.
            received: the adapter that the server sent.
            training: what to do; None to evaluate.
            upload: how updates leave a chunk.
        """
        parts = np.split(clients, range(self.chunk_size, len(clients), self.chunk_size))
        arrays = {name: np.asarray(value, np.float32) for name, value in received.items()}
        tasks = (self._task(part, round_, arrays, training, upload) for part in parts if len(part))
        for reply in self.crew.map(tasks):
            if self.bank is not None and reply.state is not None:
                self._keep(self.bank, reply.columns, reply.state)
            if self.on_chunk is not None:
                self.on_chunk(len(reply.columns["client"]))
            yield reply

    def _keep(self, bank: ClientBank, columns: Arrays, state: Arrays) -> None:
        """Notes the state of those whose training came out finite; the others keep theirs."""
        trained = columns["examples"] > 0
        good = columns["finite"][trained].astype(bool)
        own = columns["client"][trained][good].astype(np.int64)
        if not len(own):
            return
        steps = bank.read(own, [STEPS])[STEPS] + columns["steps"][trained][good]
        kept = {name: value[good] for name, value in state.items()}
        bank.stage(own, {**kept, STEPS: steps.astype(np.float32)})

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
    ) -> ChunkTask:
        state, before = None, None
        if self.bank is not None and training is not None:
            names = [spec.name for spec in self.bundle.manifest.optimizer_state]
            found = self.bank.read(part, [*names, STEPS])
            before = found.pop(STEPS).astype(np.int64)
            state = found
        return ChunkTask(
            clients=tuple(int(client) for client in part),
            round=round_,
            received=received,
            training=training,
            upload=upload,
            state=state,
            steps_before=before,
        )
