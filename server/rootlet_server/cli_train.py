"""``rootlet train``: a base from a TOML file, on one process or many."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from rootlet_server.training.data import TrainingData
    from rootlet_server.training.events import TrainingEvent
    from rootlet_server.training.recipe import Recipe
    from rootlet_server.training.trained_base import TrainedBase

_DESCRIPTION = """\
Train a model in full by backpropagation, as a TOML file says (docs/training_full.md). Interrupted,
the same command goes on after the last checkpoint. With engine.processes above 1 it starts them; to
use several machines, start this command by torchrun on each."""


def add_train_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``train`` to the sub-commands."""
    parser = commands.add_parser(
        "train", help="train a base by backprop on the server", description=_DESCRIPTION
    )
    parser.set_defaults(run=_run)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument(
        "--check", action="store_true", help="read the file, say what it asks for, train nothing"
    )


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415

    rank = int(os.environ.get("RANK", "0"))
    console = Console(quiet=rank > 0)
    with console.status("loading torch"):
        from rootlet_server.training.recipe import read_recipe  # noqa: PLC0415
    recipe = read_recipe(arguments.config)
    if arguments.check:
        _say(console, recipe)
        return 0
    processes = recipe.config.engine.processes
    if processes > 1 and "WORLD_SIZE" not in os.environ:
        return subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(processes), "-m", "rootlet_server.cli", "train",
                str(arguments.config),
            ],
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        ).returncode  # fmt: skip
    _train(console, recipe)
    return 0


def _say(console: Console, recipe: Recipe) -> None:
    config = recipe.config
    console.print(f"model {recipe.factory}, examples {recipe.train}, into {recipe.out}")
    console.print(
        f"{config.epochs} epochs of batches of {config.batch_size} by {config.optimizer.name}, "
        f"{config.engine.strategy} on {config.engine.processes} process(es), "
        f"{config.engine.precision}"
    )


def _train(console: Console, recipe: Recipe) -> None:
    from rootlet_server.training.trained_base import train  # noqa: PLC0415

    sys.path.insert(0, str(Path.cwd()))  # as python -m does, so that the factory is found
    model, data = recipe.model(), recipe.data()
    with _Bar(console) as bar:
        trained = train(
            model, data, recipe.config, out=recipe.out, on_event=bar.take,
            tensorboard=recipe.tensorboard,
        )  # fmt: skip
    measured = "" if trained.metric is None else f", held-out metric {trained.metric:.4f}"
    console.print(
        f"[green]✓[/] {trained.steps} steps in {trained.seconds:.1f} s{measured}: {recipe.out}"
    )
    if recipe.report and int(os.environ.get("RANK", "0")) == 0:
        _report(console, recipe, trained, data)
    if trained.spent is not None and recipe.config.privacy is not None:
        from rootlet_server.privacy import epsilon  # noqa: PLC0415

        delta = recipe.config.privacy.delta
        console.print(
            f"epsilon {epsilon([trained.spent], delta):.3f} at delta {delta:g}; unit: one example; "
            "neighbours: one example added or removed"
        )


def _report(console: Console, recipe: Recipe, trained: TrainedBase, data: TrainingData) -> None:
    from rootlet_server.training.diagnostics import diagnose  # noqa: PLC0415
    from rootlet_server.training.report import write_report  # noqa: PLC0415

    with console.status("writing the report"):
        found = diagnose(trained.model, data, trained.task, seed=recipe.config.seed)
        _, page = write_report(recipe.out, found, title=recipe.out.name)
    console.print(f"[green]✓[/] {page}")


class _Bar:
    """A progress bar with the latest loss and metric, and a line for what happened."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=None)
        self._metric = ""

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def take(self, event: TrainingEvent) -> None:
        """Show an event."""
        from rootlet_server.training.events import Evaluated, Resumed, Stepped  # noqa: PLC0415

        match event:
            case Stepped():
                words = f"epoch {event.epoch}  loss {event.loss:.4f}{self._metric}"
                self._progress.update(
                    self._task, completed=event.step, total=event.steps, description=words
                )
            case Evaluated():
                self._metric = f"  held-out {event.metric:.4f}"
            case Resumed():
                self._console.print(f"going on after step {event.step}")
            case _:
                pass
