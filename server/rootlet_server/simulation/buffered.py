"""Buffered rounds: clients train all the time, and every few answers make a version."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_server.errors import SimulationError
from rootlet_server.simulation.grid import EACH, VectorGrid
from rootlet_server.simulation.journal import Position
from rootlet_server.simulation.pace import OK, select
from rootlet_server.simulation.replies import train_reply
from rootlet_server.simulation.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Adapter = dict[str, npt.NDArray[np.float32]]

_START_STREAM = 5
MOST_FAILURES = 200


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
            if len(columns) > MOST_FAILURES * size + MOST_FAILURES:
                raise SimulationError(
                    f"version {version + 1}: {len(columns)} clients came back and only "
                    f"{len(arrived)} with an update; look at the population and failure_rate"
                )
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
