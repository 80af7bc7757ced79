"""Shows how a simulation goes: a bar and a live table on a terminal, one line a round elsewhere."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rootlet_server.simulation import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootlet_server.simulation.result import RoundRecord

HEADER = (
    "round", "clients", "clients/s", "loss", "held out", "epsilon", "MB down / up", "hours",
)  # fmt: skip
SHOWN = 12


@contextmanager
def show_progress(stream: TextIO, rounds: int, cohort: int | None) -> Iterator[run.Progress]:
    """What to give to ``simulate``.

    Args:
        stream: where to.
        rounds: how many there will be.
        cohort: clients of a round, if it is known.
    """
    console = Console(file=stream, highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False)

    if not console.is_terminal:
        yield run.Progress(round=lambda record: say(describe(record)), say=say)
        return
    bar = Progress(
        TextColumn("round {task.fields[round]}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("clients"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    task = bar.add_task("clients", total=None if cohort is None else cohort * rounds, round=1)
    lines: list[tuple[str, ...]] = []

    def picture() -> Group:
        table = Table(*HEADER, title="rounds")
        for line in lines[-SHOWN:]:
            table.add_row(*line)
        return Group(table, bar)

    with Live(picture(), console=console, refresh_per_second=4) as live:

        def on_round(record: RoundRecord) -> None:
            lines.append(cells(record))
            bar.update(task, round=record.round + 1)
            live.update(picture())

        yield run.Progress(round=on_round, clients=lambda n: bar.advance(task, n), say=say)


def cells(record: RoundRecord) -> tuple[str, ...]:
    """A round's line of the table; empty where nothing is known."""

    def number(value: float, form: str) -> str:
        return "" if math.isnan(value) else format(value, form)

    clients = f"{record.ok}" + (f" of {record.asked}" if record.ok < record.asked else "")
    traffic = f"{record.bytes_down / 1e6:.1f} / {record.bytes_up / 1e6:.1f}"
    return (
        str(record.round), clients, f"{record.clients_per_s:.0f}", number(record.loss, ".4f"),
        number(record.central_metric, ".4f"), number(record.epsilon, ".3g"), traffic,
        f"{record.virtual_s / 3600:.2f}",
    )  # fmt: skip


def describe(record: RoundRecord) -> str:
    """A round in one line."""
    values = zip(HEADER, cells(record), strict=True)
    return ", ".join(f"{name} {value}" for name, value in values if value)
