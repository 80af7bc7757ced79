"""``simulate``: rounds of a strategy over a population, with the graphs that ship."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rootlet_runtime.bundle import Bundle
from rootlet_server.errors import NotVectorisableError, SimulationConfigError
from rootlet_server.flower_state import restore, state_of
from rootlet_server.simulation.availability import Availability
from rootlet_server.simulation.bank import ClientBank, Slot
from rootlet_server.simulation.batching import LocalTraining
from rootlet_server.simulation.buffered import BufferedRounds
from rootlet_server.simulation.central import CentralTest
from rootlet_server.simulation.checks import check_cohort, choose_upload
from rootlet_server.simulation.controls import PREFIX, Scaffold, check_scaffold
from rootlet_server.simulation.crews import OwnCrew, hire
from rootlet_server.simulation.fleet import STEPS, Fleet
from rootlet_server.simulation.journal import Journal, Position
from rootlet_server.simulation.pace import Pace
from rootlet_server.simulation.population import fit_to_bundle
from rootlet_server.simulation.privacy import MODEL, NEIGHBOURS, UNIT, DevicePrivacy
from rootlet_server.simulation.replies import in_a_run, metric_name
from rootlet_server.simulation.result import RoundRecord, SimulationResult
from rootlet_server.simulation.rounds import Rounds, SynchronousRounds
from rootlet_server.simulation.strategies import default_strategy
from rootlet_server.simulation.tuning import remembered_chunk_size
from rootlet_server.simulation.uploads import SecureAggregation
from rootlet_server.simulation.work import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flwr.serverapp.strategy import Strategy

    from rootlet_runtime.manifest import Manifest, TensorSpec
    from rootlet_server.compiler import CompiledBundle
    from rootlet_server.simulation.latency import Latency
    from rootlet_server.simulation.population import CheckedPopulation, Examples, Population


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Who hears how it goes; each may be None.

    Attributes:
        round: called with each round's record.
        clients: called with the number of clients of each finished chunk.
        say: called with a sentence where something is done in another way than asked.
    """

    round: Callable[[RoundRecord], None] | None = None
    clients: Callable[[int], None] | None = None
    say: Callable[[str], None] | None = None


def simulate(
    bundle: Bundle | CompiledBundle,
    clients: Population,
    strategy: Strategy | None = None,
    *,
    rounds: int,
    cohort_size: int | None = None,
    seed: int,
    workers: int | str = 1,
    privacy: DevicePrivacy | None = None,
    secure_aggregation: SecureAggregation | None = None,
    availability: Availability | None = None,
    latency: Latency | None = None,
    pace: Pace | None = None,
    training: LocalTraining | None = None,
    test: Examples | None = None,
    keep_optimizer: bool = False,
    pre_aggregate: bool | None = None,
    chunk_size: int | None = None,
    vectorise: bool | None = None,
    state_dir: Path | None = None,
    progress: Progress | None = None,
) -> SimulationResult:
    """Simulate a federation.

    The same seed gives the same result, whatever ``workers`` is: random draws belong to the round
    and the client, chunks are cut in one way, and sums are made in one order.

    Args:
        bundle: what the clients run: a verified bundle, or what the compiler returned.
        clients: who they are; see ``population`` and ``partitions``.
        strategy: any of Flower's, or one's own; FedAvg by default. With ``cohort_size`` its
            ``fraction_train`` must be 1: it is offered the cohort as its nodes.
        rounds: how many.
        cohort_size: clients of a round, drawn uniformly; None offers the strategy everybody. In
            buffered rounds, how many train at a time.
        seed: of everything that is random.
        workers: processes of this machine, or a Ray client's address.
        privacy: clips each device's update and adds noise to the sum; see ``privacy``.
        secure_aggregation: adds updates up in the integers of secure aggregation.
        availability: when clients are there; None for always.
        latency: how long they take; None for no time.
        pace: how a round ends.
        training: what a client does; the bundle's own defaults by default.
        test: examples on which the server measures the adapter after each round.
        keep_optimizer: clients keep their optimiser's state between rounds, in a memory-mapped
            bank. Devices start it anew: this is another experiment than the one that ships.
        pre_aggregate: answer with averages of chunks. None does so where the strategy reads
            nothing else; True refuses a strategy that may.
        chunk_size: clients trained at once; None measures what is fastest and remembers it.
        vectorise: False trains one client at a time by the device runtime. None falls back to
            that, and says so, where the model cannot be stacked; True refuses then.
        state_dir: keeps every finished round; the same call goes on after a kill.
        progress: hears how it goes.

    Raises:
        SimulationError: its subclass names the reason.
        BundleError: the compiled bundle cannot be read.
    """
    strategy = strategy or default_strategy()
    progress, pace = progress or Progress(), pace or Pace()
    if rounds < 1:
        raise SimulationConfigError(f"rounds {rounds}: must be at least 1")
    with ExitStack() as stack:
        opened = _opened(bundle, stack)
        population = fit_to_bundle(clients, opened.manifest)
        training = training or default_training(opened)
        check_cohort(cohort_size, len(population), strategy, pace, privacy)
        scaffold = isinstance(strategy, Scaffold)
        if scaffold:
            check_scaffold(opened.manifest, pace)
        upload = choose_upload(
            strategy, privacy, secure_aggregation, cohort_size or len(population), pre_aggregate,
            pace, workers,
        )  # fmt: skip
        job, own, notes = _job(opened, population, seed, vectorise, workers, progress)
        if keep_optimizer and not job.vectorise:
            raise SimulationConfigError(
                "keep_optimizer needs a model that can be stacked: devices start it anew"
            )
        if chunk_size is None:
            chunk_size = remembered_chunk_size(own, opened, population, training)
        crew = OwnCrew(own) if workers == 1 else hire(job, workers)
        stack.callback(crew.close)
        fleet = Fleet(
            bundle=opened, population=population, crew=crew, training=training,
            chunk_size=chunk_size, latency=latency, availability=availability, pace=pace,
            on_chunk=progress.clients,
        )  # fmt: skip
        identity = {
            "manifest": opened.manifest_sha256, "population": len(population), "seed": seed,
            "examples": _fingerprint(population), "cohort": cohort_size,
            "strategy": type(strategy).__name__, "chunk": chunk_size,
            "vectorise": job.vectorise, "upload": asdict(upload), "keep": keep_optimizer,
            **{name: _plain(value) for name, value in (
                ("privacy", privacy), ("latency", latency), ("pace", pace),
                ("availability", availability), ("training", training))},
        }  # fmt: skip
        journal = Journal(state_dir, identity)
        position = journal.resume()
        if keep_optimizer or scaffold:
            slots = _slots(opened.manifest, optimizer=keep_optimizer, controls=scaffold)
            fleet.bank = _bank(len(population), slots, state_dir, stack)
            fleet.bank.recover(0 if position is None else position.round)
        central = None if test is None else CentralTest(own, test, opened.manifest)
        kind: type[Rounds] = SynchronousRounds if pace.buffer_size is None else BufferedRounds
        loop = kind(
            fleet=fleet, strategy=strategy, upload=upload, privacy=privacy, seed=seed,
            cohort_size=cohort_size, journal=journal,
        )  # fmt: skip
        stack.enter_context(in_a_run())
        position = _run(loop, journal, position, rounds, central, progress)
        return SimulationResult(
            adapter=position.adapter,
            rounds=tuple(journal.rounds),
            clients=journal.all_clients(),
            chunk_size=chunk_size,
            vectorised=job.vectorise,
            metric=metric_name(opened),
            privacy=_promise(privacy, position.round, loop.sample_rate),
            notes=notes,
        )


def _run(  # noqa: PLR0917 (one caller)
    loop: Rounds,
    journal: Journal,
    position: Position | None,
    rounds: int,
    central: CentralTest | None,
    progress: Progress,
) -> Position:
    if position is None:
        adapter = loop.fleet.bundle.initial_adapter()
        position = Position(round=0, now_s=0.0, adapter=adapter)
        loss, metric = (math.nan, math.nan) if central is None else central.measure(adapter)
        journal.finish(RoundRecord(round=0, central_loss=loss, central_metric=metric), position)
    else:
        order = loop.fleet.bundle.manifest.adapter  # some strategies go by position
        position.adapter = {spec.name: position.adapter[spec.name] for spec in order}
        restore(loop.strategy, position.strategy, list(position.adapter))
        loop.resume(position)
    while position.round < rounds:
        begun = time.monotonic()
        record, position = loop.next(position)
        if central is not None:
            record["central_loss"], record["central_metric"] = central.measure(position.adapter)
        position.strategy = state_of(loop.strategy) if journal.keeps else {}
        bank = loop.fleet.bank
        if bank is not None:
            bank.commit(position.round)
        done = RoundRecord(**record, seconds=time.monotonic() - begun)
        journal.finish(done, position)
        if bank is not None:
            bank.apply(position.round)
        if progress.round is not None:
            progress.round(done)
    return position


def _opened(bundle: Bundle | CompiledBundle, stack: ExitStack) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return stack.enter_context(Bundle.load(bundle.path, trusted_keys=[], allow_unsigned=True))


def default_training(bundle: Bundle) -> LocalTraining:
    """What the bundle's manifest says of training."""
    own = bundle.manifest.training
    size = min(own.batch_size, bundle.manifest.max_batch)
    return LocalTraining(epochs=own.epochs, batch_size=size, learning_rate=own.learning_rate)


def _job(  # noqa: PLR0917 (one caller)
    bundle: Bundle,
    population: CheckedPopulation,
    seed: int,
    vectorise: bool | None,
    workers: int | str,
    progress: Progress,
) -> tuple[Job, Worker, tuple[str, ...]]:
    """The job, and a worker in this process: the first to see whether the model can be stacked."""
    where: bytes | Path = Path(bundle.path)
    if isinstance(workers, str):
        where = Path(bundle.path).read_bytes()
    job = Job(bundle=where, population=population, seed=seed, vectorise=vectorise is not False)
    try:
        return job, Worker(job), ()
    except NotVectorisableError as error:
        if vectorise:
            raise
        note = f"one client at a time, by the device runtime: {error}"
        if progress.say is not None:
            progress.say(note)
        job = Job(bundle=where, population=population, seed=seed, vectorise=False)
        return job, Worker(job), (note,)


def _slots(manifest: Manifest, *, optimizer: bool, controls: bool) -> list[Slot]:
    """What each client keeps between rounds."""

    def slots(specs: Sequence[TensorSpec], prefix: str = "") -> list[Slot]:
        return [Slot(f"{prefix}{s.name}", tuple(int(n or 0) for n in s.shape)) for s in specs]

    found = [*slots(manifest.optimizer_state), Slot(STEPS, ())] if optimizer else []
    return found + (slots(manifest.adapter, PREFIX) if controls else [])


def _bank(
    clients: int, slots: Sequence[Slot], state_dir: Path | None, stack: ExitStack
) -> ClientBank:
    if state_dir is None:
        state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rootlet-bank-")))
    state_dir.mkdir(parents=True, exist_ok=True)
    return ClientBank(state_dir / "clients.bank", clients, slots)


def _promise(privacy: DevicePrivacy | None, rounds: int, sample_rate: float) -> str:
    if privacy is None:
        return ""
    epsilon = privacy.epsilon(rounds, sample_rate)
    spent = f"epsilon {epsilon:.3g}" if math.isfinite(epsilon) else "no bound (no noise)"
    return (
        f"{MODEL} differential privacy, {spent} at delta {privacy.delta:g}, unit one {UNIT}, "
        f"neighbours {NEIGHBOURS}; the noise of a simulation protects nobody"
    )


def _fingerprint(population: CheckedPopulation) -> str:
    """Of a few clients' examples: enough to see that a state directory is another population's."""
    digest = hashlib.sha256()
    last = len(population) - 1
    for client in sorted({0, last // 2, last}):
        for array in population.examples(client):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {"kind": type(value).__name__, **asdict(value)}
