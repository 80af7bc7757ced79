"""Clients a second in simulation, beside Flower on Ray, pfl-research and a tight torch loop.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_simulation.py --peer loop --cohort 1000
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_simulation.py --peer flower --clients 10000

The task: clients of 20 to 60 examples with 64 features, one epoch in batches of 10, an MLP of
102,090 frozen parameters with adapters of rank 4 (A calibrated and frozen, B and the head learn:
5,514 numbers), float32, backpropagation. Peers train the same numbers by eager torch. A round is
everything from the server's request to the new adapter: sampling, training, averaging. The two
take turns; each ratio is between neighbours. ``--peer none`` measures without one: ``--grow`` the
cost by cohort, ``--million`` by population, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from models import CASES, Case, mlp
from report import print_heading, print_table, quartiles, with_spread
from simulation_peers import BATCH, RATE, flower_apps, loop_round, pfl_round, save_task

from rootlet_runtime.bundle import Bundle
from rootlet_server.compiler import CompileConfig, LoraConfig, compile_bundle
from rootlet_server.compiler.learner import float_a
from rootlet_server.simulation.batching import LocalTraining
from rootlet_server.simulation.crews import OwnCrew, hire
from rootlet_server.simulation.fleet import Fleet
from rootlet_server.simulation.grid import EACH
from rootlet_server.simulation.journal import Journal, Position
from rootlet_server.simulation.population import ArrayPopulation, SampledPopulation, fit_to_bundle
from rootlet_server.simulation.replies import in_a_run
from rootlet_server.simulation.rounds import SynchronousRounds
from rootlet_server.simulation.strategies import default_strategy
from rootlet_server.simulation.tuning import measured_chunk_size
from rootlet_server.simulation.uploads import Upload
from rootlet_server.simulation.work import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from rootlet_server.compiler import CompiledBundle
    from rootlet_server.simulation.population import Population

SMALLEST, LARGEST, POOL = 20, 60, 40_000
PACKAGES = ("torch", "flwr", "ray", "numpy")


class SmallCnn(torch.nn.Module):
    """Two convolutions on 16 x 16 pictures, a linear layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(256, 64), torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


MODELS = {
    "mlp": Case(partial(mlp, 64, 256, 320), (64,)),
    "cnn": Case(SmallCnn, (1, 16, 16)),
    "transformer": Case(partial(CASES["block-d128-t32"].make.func, 1, 32), (8, 32)),
    "tiny": Case(partial(mlp, 8, 8), (8,)),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--peer", choices=("flower", "pfl", "loop", "none"), default="loop")
    add("--model", choices=MODELS, default="mlp")
    add("--rule", choices=("backprop", "dfa"), default="backprop")
    add("--base", choices=("float32", "int8"), default="float32")
    add("--clients", type=int, default=10_000)
    add("--cohort", type=int, default=1_000)
    add("--replies", choices=("each", "partial"), default="partial",
        help="one reply a client through stock FedAvg, or averages of chunks")  # fmt: skip
    add("--workers", type=int, default=1)
    add("--rounds", type=int, default=5)
    add("--chunk", type=int, help="clients at once (default: tuned)")
    add("--grow", action="store_true", help="cohorts of 100, 1,000 and 10,000")
    add("--million", action="store_true", help="populations of 10,000 and of a million")
    add("--quick", action="store_true", help="a tiny model and few clients: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.model, args.clients, args.cohort, args.rounds, args.chunk = "tiny", 60, 20, 2, 8
    return args


def compiled(case: Case, args: argparse.Namespace, folder: Path) -> CompiledBundle:
    """The task's bundle."""
    config = CompileConfig(
        rule=args.rule, base_dtype=args.base, optimizer="sgd", max_batch=64,
        adapter=LoraConfig(rank=4),
    )  # fmt: skip
    return compile_bundle(
        case.model(), calibration_x=case.batch(64, seed=2)[0], config=config, name="benchmark",
        version=1, signing_key=None, out=folder / "benchmark.rootlet",
    )  # fmt: skip


class Ours:
    """Rounds of stock FedAvg on a ``VectorGrid``.

    Args:
        bundle: what clients run.
        clients: who they are.
        args: the command line.
    """

    def __init__(self, bundle: Bundle, clients: Population, args: argparse.Namespace) -> None:
        population = fit_to_bundle(clients, bundle.manifest)
        training = LocalTraining(epochs=1, batch_size=BATCH, learning_rate=RATE)
        job = Job(bundle=Path(bundle.path), population=population, seed=1, vectorise=True)
        worker = Worker(job)
        self.chunk = args.chunk or measured_chunk_size(worker, bundle, population, training)
        self.crew = OwnCrew(worker) if args.workers == 1 else hire(job, args.workers)
        self._fleet = Fleet(
            bundle=bundle, population=population, crew=self.crew, training=training,
            chunk_size=self.chunk,
        )  # fmt: skip
        self._upload = EACH if args.replies == "each" else Upload(partial=True)
        self._position = Position(round=0, now_s=0.0, adapter=bundle.initial_adapter())

    def round(self, cohort: int) -> float:
        """Seconds of one round."""
        rounds = SynchronousRounds(
            fleet=self._fleet, strategy=default_strategy(), upload=self._upload, privacy=None,
            seed=1, cohort_size=cohort, journal=Journal(None, {}),
        )  # fmt: skip
        begun = time.perf_counter()
        record, self._position = rounds.next(self._position)
        seconds = time.perf_counter() - begun
        if record["ok"] != cohort:
            raise SystemExit(f"{record['ok']} of {cohort} clients answered")
        return seconds


def population(case: Case, clients: int) -> ArrayPopulation:
    """Ragged clients that share one pool of random examples."""
    rng = np.random.default_rng(0)
    x, y = case.batch(POOL)
    sizes = rng.integers(SMALLEST, LARGEST + 1, clients)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = rng.integers(0, POOL, int(starts[-1]))
    return ArrayPopulation(x=x.numpy(), y=y.numpy(), rows=rows, starts=starts)


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def alternate(
    ours: Ours, peer: Callable[[], None], args: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds of ours and of the peer's rounds, by turns, after one of each that is not counted."""
    ours.round(args.cohort)
    peer()
    pairs = [(ours.round(args.cohort), timed(peer)) for _ in range(args.rounds)]
    return [own for own, _ in pairs], [theirs for _, theirs in pairs]


def against(ours: Ours, args: argparse.Namespace, folder: Path) -> tuple[list[float], list[float]]:
    """Both contestants' rounds."""
    cohort = np.random.default_rng(2).choice(args.clients, args.cohort, replace=False)
    if args.peer != "flower":
        make = pfl_round if args.peer == "pfl" else loop_round
        return alternate(ours, make(folder, cohort), args)
    from flwr.simulation import run_simulation

    found: list[tuple[list[float], list[float]]] = []
    server, client = flower_apps(
        folder, args.cohort, lambda peer: found.append(alternate(ours, peer, args))
    )
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(
        server, client, args.clients,
        backend_config={"client_resources": resources, "init_args": {
            "num_cpus": os.cpu_count(), "include_dashboard": False,
            "_node_ip_address": "127.0.0.1"}},
    )  # fmt: skip
    return found[0]


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(name: str, cohort: int, seconds: list[float]) -> tuple[str, ...]:
    """A line of the table."""
    rates = [cohort / each for each in seconds]
    return name, str(cohort), with_spread(seconds, ".3f"), with_spread(rates, ".0f")


def compare(ours: Ours, args: argparse.Namespace, folder: Path) -> None:
    """The table and the ratio."""
    own, theirs = against(ours, args, folder)
    rows = [
        row(f"rootlet, {args.workers} process(es), replies: {args.replies}", args.cohort, own),
        row(args.peer, args.cohort, theirs),
    ]
    print_table(("contestant", "cohort", "seconds a round", "clients/s"), rows)
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
    lower, _, upper = quartiles(ratios)
    print(f"chunk {ours.chunk}, population {args.clients}, peak {peak_mib():.0f} MiB")
    middle = float(np.median(theirs) / np.median(own))
    print(f"{args.peer} / rootlet: ratio of medians {middle:.2f} [{lower:.2f}, {upper:.2f}]")


def alone(bundle: Bundle, case: Case, args: argparse.Namespace) -> None:
    """Cost by cohort and by population, and memory."""
    x, y = case.batch(POOL)

    def lazily(clients: int) -> Ours:
        drawn = SampledPopulation(
            x=x.numpy(), y=y.numpy(), clients=clients, smallest=SMALLEST, largest=LARGEST, seed=1
        )
        return Ours(bundle, drawn, args)

    if args.million:
        few, many = lazily(args.clients), lazily(1_000_000)
        args.chunk = few.chunk
        few.round(args.cohort), many.round(args.cohort)
        pairs = [(few.round(args.cohort), many.round(args.cohort)) for _ in range(args.rounds)]
        small, large = ([pair[i] for pair in pairs] for i in (0, 1))
        rows = [row(f"population {args.clients}", args.cohort, small),
                row("population 1,000,000", args.cohort, large)]  # fmt: skip
        print_table(("contestant", "cohort", "seconds a round", "clients/s"), rows)
        ratio = np.median(large) / np.median(small)
        spread = quartiles([b / a for a, b in pairs])
        print(f"a million / {args.clients}: {ratio:.2f} [{spread[0]:.2f}, {spread[2]:.2f}]")
        return
    ours = lazily(args.clients) if args.clients > 100_000 else Ours(
        bundle, population(case, args.clients), args
    )  # fmt: skip
    cohorts = [100, 1000, 10_000] if args.grow else [args.cohort]
    ours.round(min(cohorts))
    seconds = {size: [ours.round(size) for _ in range(args.rounds)] for size in cohorts}
    rows = [row(f"rootlet, {args.workers} process(es), {args.replies}", n, s)
            for n, s in seconds.items()]  # fmt: skip
    print_table(("contestant", "cohort", "seconds a round", "clients/s"), rows)
    print(f"chunk {ours.chunk}, peak {peak_mib():.0f} MiB")
    if args.grow:
        each = [1e6 * np.median(values) / size for size, values in seconds.items()]
        print(f"microseconds a client: {', '.join(f'{value:.0f}' for value in each)}")


def main() -> None:
    """Run and print."""
    args = arguments()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print_heading(f"Simulation of {args.model}, {args.rule}, {args.base}", PACKAGES)
    case = MODELS[args.model]
    with tempfile.TemporaryDirectory() as name, in_a_run():
        folder = Path(name)
        made = compiled(case, args, folder)
        with Bundle.load(made.path, trusted_keys=[], allow_unsigned=True) as bundle:
            if args.peer == "none":
                alone(bundle, case, args)
                return
            clients = population(case, args.clients)
            learner, frozen = made.built.step.learner, made.built.frozen
            scaled = {s.module: learner.scale * float_a(frozen, s.module).t()
                      for s in learner.sites}  # fmt: skip
            save_task(folder, clients.x[clients.rows], clients.y[clients.rows], clients.starts,
                      case.model(), scaled, learner.head.module)  # fmt: skip
            ours = Ours(bundle, clients, args)
            try:
                compare(ours, args, folder)
            finally:
                ours.crew.close()


if __name__ == "__main__":
    main()
