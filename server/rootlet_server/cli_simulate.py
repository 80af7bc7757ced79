"""`rootlet simulate`: a federation of simulated clients from a TOML file, with live progress."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rootlet_server.simulation.result import RoundRecord, SimulationResult

_DESCRIPTION = """\
Simulate rounds of a federation over thousands of clients with the graphs of a bundle. The file says
what is simulated (docs/simulation.md). Every finished round is kept in --out; after an interruption
the same command goes on. At the end --out holds rounds.parquet, clients.parquet and plot.png."""


def add_simulate_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add `simulate` to the sub-commands."""
    parser = commands.add_parser(
        "simulate", help="simulate thousands of clients", description=_DESCRIPTION
    )
    parser.set_defaults(run=run_simulate)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the simulation, in TOML")
    add("--out", type=Path, default=Path("rootlet-simulation"), metavar="DIR",
        help="where rounds and results are kept (default: ./%(default)s)")  # fmt: skip
    add("--workers", metavar="N", help="processes, or a Ray client's address")
    add("--rounds", type=int, metavar="N", help="instead of the file's")


def run_simulate(arguments: argparse.Namespace) -> int:
    """Simulate as the file says; returns the exit code."""
    import logging  # noqa: PLC0415

    from rootlet_runtime.bundle import Bundle  # noqa: PLC0415
    from rootlet_runtime.signing import load_public_key  # noqa: PLC0415
    from rootlet_server.simulation.console import show_progress  # noqa: PLC0415
    from rootlet_server.simulation.run import default_training, simulate  # noqa: PLC0415
    from rootlet_server.simulation.settings import load_settings, merged_training  # noqa: PLC0415

    logging.getLogger("flwr").setLevel(logging.ERROR)
    settings = load_settings(arguments.file)
    own = dict(settings.arguments)
    if arguments.rounds is not None:
        own["rounds"] = arguments.rounds
    if arguments.workers is not None:
        is_number = arguments.workers.isdecimal()
        own["workers"] = int(arguments.workers) if is_number else arguments.workers
    keys = [load_public_key(path) for path in settings.trusted_keys]
    with Bundle.load(settings.bundle, trusted_keys=keys) as bundle:
        training = merged_training(default_training(bundle), settings.training)
        with show_progress(sys.stdout, own["rounds"], own.get("cohort_size")) as progress:
            result = simulate(
                bundle, settings.population, settings.strategy, training=training,
                state_dir=arguments.out, progress=progress, **own,
            )  # fmt: skip
    result.to_parquet(arguments.out)
    result.plot(arguments.out / "plot.png")
    print(_summary(result, arguments.out))
    return 0


def _summary(result: "SimulationResult", out: Path) -> str:
    last: RoundRecord = result.rounds[-1]
    lines = [
        f"{last.round} rounds, {result.clients_per_s:.0f} clients/s, "
        f"{last.virtual_s / 3600:.2f} simulated hours, chunks of {result.chunk_size}",
        *result.notes,
        *([result.privacy] if result.privacy else []),
        f"wrote rounds.parquet, clients.parquet and plot.png to {out}",
    ]
    return "\n".join(lines)
