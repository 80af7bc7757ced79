"""Rounds: a cohort is drawn, asked through the strategy, and timed; or a buffer fills.

Both kinds drive any of Flower's strategies by its own three steps, ``configure_train``, the grid,
``aggregate_train``, so that a round can be kept and taken up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from rootlet_server.simulation.grid import EACH, VectorGrid
from rootlet_server.simulation.journal import Position
from rootlet_server.simulation.pace import OK, STATUSES, WAIT_STEP_S, select
from rootlet_server.simulation.privacy import Finish
from rootlet_server.simulation.replies import train_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

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

_COHORT_STREAM, _START_STREAM = 3, 5


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


@dataclass(kw_only=True)
class _Flight:
    """A client that trains: who, from which version, until when."""

    client: int
    version: int
    begun_s: float
    ends_s: float
    lost: bool


@dataclass(kw_only=True)
class BufferedRounds(Rounds):
    """FedBuff: ``cohort_size`` clients train at all times; every ``buffer_size`` answers aggregate.

    A client's update moves the present adapter as it moved the one that it received, times
    ``1 / sqrt(1 + staleness)`` (Nguyen et al. 2022). All that started from one version are trained
    together, when that version's adapter would be forgotten.
    """

    flights: list[_Flight] = field(default_factory=list)
    updates: dict[tuple[int, int], tuple[Adapter, dict[str, float]]] = field(default_factory=dict)
    started: int = 0

    def next(self, before: Position) -> tuple[dict[str, Any], Position]:
        """Until the buffer is full once."""
        version, now_s = before.round, before.now_s
        if not self.flights:
            self._start(version, now_s, set())
        arrived: list[_Flight] = []
        columns: list[dict[str, Any]] = []
        size = self.fleet.pace.buffer_size or 1
        while len(arrived) < size:
            flight = min(self.flights, key=lambda each: (each.ends_s, each.client, each.version))
            if (flight.client, flight.version) not in self.updates and not flight.lost:
                self._train(before.adapter, version)
            self.flights.remove(flight)
            now_s = max(now_s, flight.ends_s)
            line = self._line(flight)
            columns.append(line)
            if line["status"] == OK:
                arrived.append(flight)
            else:
                self.updates.pop((flight.client, flight.version), None)
            self._start(version, now_s, {each.client for each in arrived})
        self._train(before.adapter, version)
        adapter = self._aggregate(before.adapter, version, arrived)
        together = {name: np.array([each[name] for each in columns]) for name in columns[0]}
        together["status"] = together["status"].astype(object)
        self.journal.clients(version + 1, together)
        record = self.record(version + 1, together, now_s)
        after = Position(round=version + 1, now_s=now_s, adapter=adapter, more=self._saved())
        return record, after

    def _start(self, version: int, now_s: float, resting: set[int]) -> None:
        """Asks clients until ``cohort_size`` train; none twice for one version."""
        fleet, busy = self.fleet, {flight.client for flight in self.flights} | resting
        count = (self.cohort_size or 1) - len(self.flights)
        wanted = min(count + len(busy), len(fleet.population))
        rng = np.random.default_rng([self.seed, _START_STREAM, self.started])
        chosen = select(rng, len(fleet.population), wanted, fleet.availability, now_s)
        fresh = [c for c in rng.permutation(chosen.clients).tolist() if c not in busy][:count]
        clients = np.array(fresh, np.int64)
        self.started += 1
        seconds, lost = np.zeros(len(clients)), np.zeros(len(clients), bool)
        if fleet.latency is not None:
            examples = fleet.examples(clients, fleet.training).astype(float)
            each = (fleet.bytes_each, fleet.bytes_each)
            seconds = fleet.latency.seconds(clients, examples, *each, self.started)
            lost = fleet.latency.fails(clients, self.started)
        begin = now_s + chosen.waited_s
        self.flights += [
            _Flight(
                client=int(c),
                version=version,
                begun_s=begin,
                ends_s=begin + float(s),
                lost=bool(gone),
            )
            for c, s, gone in zip(clients, seconds, lost, strict=True)
        ]

    def _train(self, adapter: Adapter, version: int) -> None:
        """Trains all that started from this version and are not trained yet, as one cohort."""
        wanted = sorted(
            flight.client
            for flight in self.flights
            if flight.version == version and not flight.lost
            and (flight.client, version) not in self.updates
        )  # fmt: skip
        for chunk in self.fleet.ask(
            np.array(wanted, np.int64), version + 1, adapter, self.fleet.training, EACH
        ):
            columns = {name: values.tolist() for name, values in chunk.columns.items()}
            for k, client in enumerate(columns["client"]):
                row = {name: float(values[k]) for name, values in columns.items()}
                found = chunk.adapters or {}
                update = {
                    name: value[k] - adapter[name] if row["examples"] else adapter[name]
                    for name, value in found.items()
                }
                self.updates[int(client), version] = (update, row)

    def _line(self, flight: _Flight) -> dict[str, Any]:
        nothing = dict.fromkeys(("examples", "steps", "loss", "metric", "received", "trained"), 0.0)
        _, row = self.updates.get((flight.client, flight.version), ({}, nothing))
        status = "lost" if flight.lost else "empty" if not row["examples"] else OK
        if status == OK and not row["finite"]:
            status = "diverged"
        return {
            "client": flight.client, "status": status, "seconds": flight.ends_s - flight.begun_s,
            **{name: row[name] for name in nothing},
        }  # fmt: skip

    def _aggregate(self, adapter: Adapter, version: int, arrived: list[_Flight]) -> Adapter:
        grid = VectorGrid(self.fleet)
        grid.offered = [flight.client + 1 for flight in arrived]
        messages = {m.metadata.dst_node_id: m for m in self.configured(version + 1, adapter, grid)}
        answers = []
        for flight in arrived:
            update, row = self.updates.pop((flight.client, flight.version))
            factor = np.float32(1 / math.sqrt(1 + version - flight.version))
            moved = {name: adapter[name] + factor * value for name, value in update.items()}
            told = {"num-examples": int(row["examples"]), "loss": row["loss"]}
            answers.append(train_reply(messages[flight.client + 1], moved, told))
        return self.aggregated(version + 1, adapter, answers)

    def _saved(self) -> dict[str, npt.NDArray[Any]]:
        flights = self.flights
        saved: dict[str, npt.NDArray[Any]] = {
            "started": np.array(self.started),
            "flights": np.array([[f.client, f.version, f.lost] for f in flights], np.int64),
            "times": np.array([[f.begun_s, f.ends_s] for f in flights]),
        }
        keys = sorted(self.updates)
        saved["trained"] = np.array(keys, np.int64).reshape(len(keys), 2)
        if keys:
            rows = [self.updates[key][1] for key in keys]
            saved |= {f"row/{name}": np.array([row[name] for row in rows]) for name in rows[0]}
            for name in self.updates[keys[0]][0]:
                saved[f"update/{name}"] = np.stack([self.updates[key][0][name] for key in keys])
        return saved

    def resume(self, position: Position) -> None:
        """Takes up the clients that were training."""
        saved: Mapping[str, npt.NDArray[Any]] = position.more
        self.started = int(saved["started"])
        self.flights = [
            _Flight(
                client=int(c),
                version=int(v),
                begun_s=float(begun),
                ends_s=float(ends),
                lost=bool(gone),
            )
            for (c, v, gone), (begun, ends) in zip(saved["flights"], saved["times"], strict=True)
        ]
        parts = {
            kind: {n.removeprefix(kind): v for n, v in saved.items() if n.startswith(kind)}
            for kind in ("row/", "update/")
        }
        self.updates = {
            (int(client), int(version)): (
                {name: value[k] for name, value in parts["update/"].items()},
                {name: float(value[k]) for name, value in parts["row/"].items()},
            )
            for k, (client, version) in enumerate(saved["trained"])
        }


def _together(told: list[Columns]) -> Columns:
    names = ("client", "status", "seconds", "examples", "steps", "loss", "metric", "received",
             "trained")  # fmt: skip
    if not told:
        return {name: np.empty(0, object if name == "status" else np.float64) for name in names}
    return {name: np.concatenate([each[name] for each in told]) for name in names}
