"""``rootlet bench learning``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Runs the fixed suite of learning tasks on real data and real pretrained models, every rule tuned
with the same budget, and writes a table and plots. Finished cells are kept in DIR/cells.jsonl, so
that an interrupted run goes on where it stopped. A full run takes hours on two cores: name tasks
and rules for less, or --quick for a look at one task."""


def add_bench_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``bench`` to the sub-commands."""
    parser = commands.add_parser("bench", help="measure rules against each other on real data")
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", required=True)
    learning = subjects.add_parser(
        "learning", help="the learning scoreboard", description=_DESCRIPTION
    )
    learning.set_defaults(run=_run)
    add = learning.add_argument
    add("--out", type=Path, default=Path("rootlet-bench"), metavar="DIR",
        help="where learning.md, the plots and the cells go (default: %(default)s)")  # fmt: skip
    add("--task", action="append", metavar="NAME",
        help="only this task; may be given more than once")  # fmt: skip
    add("--rule", action="append", metavar="NAME",
        help="only this row; may be given more than once")  # fmt: skip
    add("--seeds", type=_at_least_one, metavar="N", help="drawings of each task (default: 3 or 5)")
    add("--workers", type=_at_least_one, default=2, metavar="N", help="processes (default: 2)")
    add("--quick", action="store_true",
        help="one task, four rows, two seeds: does it run?")  # fmt: skip
    add("--report", action="store_true",
        help="run nothing: write the page of the cells that are kept")  # fmt: skip
    add("--no-cost", action="store_true", help="leave out times, memory and bytes")
    add("--no-private", action="store_true", help="leave out the private rows")
    add("--no-continual", action="store_true", help="leave out the five-task sequence")

    optimizers = subjects.add_parser(
        "optimizers",
        help="every optimiser of full training on one task",
        description="Steps and seconds to an accuracy on scanned digits, and peak memory, of every "
        "optimiser that rootlet train knows; a few minutes.",
    )
    optimizers.set_defaults(run=_run_optimizers)
    optimizers.add_argument("--out", type=Path, default=Path("rootlet-bench"), metavar="DIR",
        help="where finished rows are kept (default: %(default)s)")  # fmt: skip


def _run_optimizers(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415

    from rootlet_server.bench.optimizers import main  # noqa: PLC0415

    main(Console(), arguments.out / "optimizers.json")
    return 0


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    with console.status("loading torch"):
        from rootlet_server.bench.learning import BenchConfig, run_bench  # noqa: PLC0415
    config = BenchConfig(
        out=arguments.out,
        tasks=tuple(arguments.task or ()),
        arms=tuple(arguments.rule or ()),
        seeds=arguments.seeds,
        workers=arguments.workers,
        quick=arguments.quick,
        cost=not arguments.no_cost,
        private=not arguments.no_private,
        continual=not arguments.no_continual,
        report=arguments.report,
    )
    run_bench(config, console)
    return 0
