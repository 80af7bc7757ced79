"""Rounds: a cohort is drawn, asked through the strategy, and timed.

These and the buffered ones drive any of Flower's strategies by its own steps, ``configure_train``
and ``aggregate_train`` with the grid between them, so that a round can be kept and taken up.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from rootlet_server.simulation.grid import VectorGrid
from rootlet_server.simulation.journal import Position
from rootlet_server.simulation.pace import OK, STATUSES, WAIT_STEP_S, select
from rootlet_server.simulation.privacy import Finish

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from flwr.serverapp.strategy import Strategy

    from rootlet_server.simulation.fleet import Fleet
    from rootlet_server.simulation.journal import Journal
    from rootlet_server.simulation.pace import Outcome
    from rootlet_server.simulation.privacy import DevicePrivacy
    from rootlet_server.simulation.replies import Asked
    from rootlet_server.simulation.uploads import Upload

    Adapter = dict[str, npt.NDArray[np.float32]]
    Columns = dict[str, npt.NDArray[Any]]

_COHORT_STREAM = 3


@dataclass(kw_only=True)
class Rounds(ABC):
    """What both kinds of rounds share.

    Attributes:
        fleet: the clients.
        strategy: aggregates.
        upload: how updates leave a chunk.
        privacy: None for none.
        seed: of cohorts and noise.
        cohort_size: None for everybody.
        journal: takes the clients' lines.
    """

    fleet: Fleet
    strategy: Strategy
    upload: Upload
    privacy: DevicePrivacy | None
    seed: int
    cohort_size: int | None
    journal: Journal

    @property
    def asked(self) -> int:
        """Clients of a round, those that are asked beyond the cohort included."""
        return math.ceil((self.cohort_size or 0) * self.fleet.pace.over_selection)

    @property
    def sample_rate(self) -> float:
        """Probability with which a device is asked in a private round."""
        return self.asked / len(self.fleet.population)

    @abstractmethod
    def next(self, before: Position) -> tuple[dict[str, Any], Position]:
        """One round more: the values of its record, and where the simulation is then."""

    def resume(self, position: Position) -> None:  # noqa: B027 (most have nothing to take up)
        """Goes on from a saved position."""

    def configured(self, round_: int, adapter: Adapter, grid: VectorGrid) -> list[Any]:
        """The strategy's messages."""
        arrays = ArrayRecord({name: Array(value) for name, value in adapter.items()})
        with _python_draws(f"{self.seed} {round_}"):
            return list(self.strategy.configure_train(round_, arrays, ConfigRecord(), grid))

    def aggregated(self, round_: int, before: Adapter, answers: list[Any]) -> Adapter:
        """The strategy's new adapter; the old one where it makes none."""
        arrays, _ = self.strategy.aggregate_train(round_, answers)
        if arrays is None:
            return before
        return {name: array.numpy().astype(np.float32) for name, array in arrays.items()}

    def record(self, round_: int, columns: Columns, now_s: float) -> dict[str, Any]:
        """The values of a round's record."""
        counts = {name: int((columns["status"] == name).sum()) for name in STATUSES}
        good = columns["status"] == OK
        weights = columns["examples"][good]
        asked, each = len(columns["client"]), self.fleet.bytes_each
        loss = (
            float(np.average(columns["loss"][good], weights=weights)) if len(weights) else math.nan
        )
        return {
            "round": round_, "asked": asked, **counts, "examples": int(weights.sum()),
            "loss": loss, "bytes_down": asked * each,
            "bytes_up": (counts["ok"] + counts["late"] + counts["unused"]) * each,
            "virtual_s": now_s,
        }  # fmt: skip


@dataclass(kw_only=True)
class SynchronousRounds(Rounds):
    """A cohort is asked, and answers, and the next one is asked."""

    def next(self, before: Position) -> tuple[dict[str, Any], Position]:
        """One round."""
        round_ = before.round + 1
        clients, waited = self._cohort(round_, before.now_s)
        told: list[Columns] = []

        def note(asked: Asked, columns: Columns, _: Outcome) -> None:
            if asked.training is not None:
                told.append(columns)

        grid = self._grid(round_, note)
        grid.now_s = before.now_s + waited
        grid.offered = None if clients is None else (clients + 1).tolist()
        adapter = before.adapter
        if clients is None or len(clients):
            messages = self.configured(round_, adapter, grid)
            answers = grid.send_and_receive(messages)
            if answers:
                adapter = self.aggregated(round_, adapter, answers)
        columns = _together(told)
        self.journal.clients(round_, columns)
        record = self.record(round_, columns, grid.now_s)
        if self.privacy is not None:
            record["epsilon"] = self.privacy.epsilon_at_most(round_, self.sample_rate)
        return record, Position(round=round_, now_s=grid.now_s, adapter=adapter)

    def _grid(self, round_: int, note: Any) -> VectorGrid:
        finish = None
        if self.privacy is not None or self.upload.secure is not None:
            expected = float(self.cohort_size or len(self.fleet.population))
            finish = Finish(
                privacy=self.privacy, secure=self.upload.secure, expected=expected,
                seed=self.seed, round=round_,
            )  # fmt: skip
        return VectorGrid(self.fleet, upload=self.upload, finish=finish, on_clients=note)

    def _cohort(self, round_: int, now_s: float) -> tuple[npt.NDArray[np.int64] | None, float]:
        """Who is asked, and how long that took; a Poisson sample where privacy is counted."""
        if self.cohort_size is None:
            return None, 0.0
        rng = np.random.default_rng([self.seed, _COHORT_STREAM, round_])
        population, who = len(self.fleet.population), self.fleet.availability
        if self.privacy is None:
            chosen = select(rng, population, self.asked, who, now_s)
            return chosen.clients, chosen.waited_s
        count = int(rng.binomial(population, self.sample_rate))
        clients = np.sort(rng.choice(population, count, replace=False, shuffle=False))
        if who is not None:
            clients = clients[who.available(clients, now_s)]
        return clients, 0.0 if len(clients) else WAIT_STEP_S


@contextmanager
def _python_draws(seed: str) -> Iterator[None]:
    """Flower's strategies sample by Python's own generator: it is ours for a moment."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _together(told: list[Columns]) -> Columns:
    names = ("client", "status", "seconds", "examples", "steps", "loss", "metric", "received",
             "trained")  # fmt: skip
    if not told:
        return {name: np.empty(0, object if name == "status" else np.float64) for name in names}
    return {name: np.concatenate([each[name] for each in told]) for name in names}
