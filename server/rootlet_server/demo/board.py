"""What the demo shows while it runs: one line a phase, then a live table of rounds."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from rootlet_server.federation.console import kilobytes
from rootlet_server.federation.events import (
    Evaluated,
    Event,
    Reply,
    ReplyRefused,
    RoundFinished,
    RoundStarted,
    Waiting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLUMNS = (
    "round",
    "devices",
    "accuracy before",
    "after own training",
    "down",
    "up",
    "seconds",
    "energy (est.)",
)


class Board:
    """The console, the wall time of each phase, and the table."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a spinner with ``name``, then a line with the seconds it took."""
        start = time.monotonic()
        with self.console.status(name) as status:
            yield lambda detail: status.update(f"{name}: {detail}")
        self._done(name, start)

    @contextmanager
    def rounds(self, name: str) -> Iterator[Callable[[Event], None]]:
        """Show the table while events come in."""
        start = time.monotonic()
        view = _Rounds()
        with Live(view.render(), console=self.console, refresh_per_second=8) as live:

            def take(event: Event) -> None:
                view.take(event)
                live.update(view.render())

            yield take
            view.status = None
            live.update(view.render())
        if not self.console.is_terminal:
            self.console.line()  # Live ends its line on a terminal only
        self._done(name, start)

    def _done(self, name: str, start: float) -> None:
        seconds = time.monotonic() - start
        self.phases[name] = seconds
        self.console.print(f"[green]✓[/] {name} [dim]{seconds:.1f} s[/]")


class _Rounds:
    """The table's rows, and a line beneath it that says what is awaited."""

    def __init__(self) -> None:
        self.status: str | None = "starting the server"
        self._rows: list[tuple[str, ...]] = []

    def take(self, event: Event) -> None:
        match event:
            case Waiting():
                self.status = f"{event.online} of {event.needed} devices are here"
            case RoundStarted():
                self.status = f"round {event.round}: {len(event.cohort)} devices train"
            case Reply():
                self.status = f"round {event.round}: {event.phase} replies come in"
            case ReplyRefused():
                self._rows.append((str(event.round), "left out", event.reason, *[""] * 5))
            case RoundFinished():
                self._rows.append(_row(event))
                self.status = f"round {event.round} is averaged"
            case Evaluated():
                final = f"[bold]{event.means['accuracy_received']:.1%}[/]"
                self._rows.append(("end", str(event.devices), final, *[""] * 5))

    def render(self) -> Group:
        table = Table(*COLUMNS, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self._rows:
            table.add_row(*row)
        return Group(table, *([Spinner("dots", Text(self.status))] if self.status else []))


def _row(event: RoundFinished) -> tuple[str, ...]:
    return (
        str(event.round),
        f"{event.devices}/{event.asked}",
        f"{event.means['accuracy_received']:.1%}",
        f"{event.means['accuracy_trained']:.1%}",
        kilobytes(event.bytes_down),
        kilobytes(event.bytes_up),
        f"{event.seconds:.1f}",
        f"{event.energy_estimated_j * 1e3:.2f} mJ",
    )
