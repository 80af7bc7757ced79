"""Shows the events of a federation: a live table on a terminal, one line an event elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rootlet_server.federation.events import (
    BudgetSpent,
    Evaluated,
    Event,
    Listening,
    OnEvent,
    ReplyRefused,
    Restarted,
    RoundFinished,
    RoundRepeated,
    RoundStarted,
    Waiting,
    to_line,
)


@contextmanager
def show_events(stream: TextIO, *, as_json: bool = False) -> Iterator[OnEvent]:
    """A function that shows each event it is given.

    Args:
        stream: Where to; a terminal gets a live table, anything else plain lines.
        as_json: One JSON object for each event, as in the event log, wherever to.
    """
    if as_json:
        yield lambda event: print(to_line(event), file=stream, flush=True)
        return
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    table = _new_table()
    with Live(table, console=console, refresh_per_second=4):
        yield _rows(console, table)


def _lines(console: Console) -> OnEvent:
    def show(event: Event) -> None:
        text = describe(event)
        if text is not None:
            console.print(text, markup=False)

    return show


def _rows(console: Console, table: Table) -> OnEvent:
    def show(event: Event) -> None:
        if isinstance(event, RoundFinished):
            table.add_row(*_cells(event))
        elif not isinstance(event, RoundStarted) and (text := describe(event)) is not None:
            console.print(text, markup=False)

    return show


def _new_table() -> Table:
    table = Table(title="rounds")
    for name in (
        "round",
        "devices",
        "received",
        "trained",
        "down",
        "up",
        "seconds",
        "energy (est.)",
    ):
        table.add_column(name, justify="right")
    return table


def _cells(event: RoundFinished) -> tuple[str, ...]:
    return (
        str(event.round),
        f"{event.devices}/{event.asked}",
        _mean(event, "received"),
        _mean(event, "trained"),
        kilobytes(event.bytes_down),
        kilobytes(event.bytes_up),
        f"{event.seconds:.2f}",
        "not sent" if event.protection else f"{event.energy_estimated_j:.3g} J",
    )


def _mean(event: RoundFinished, suffix: str) -> str:
    """The mean accuracy in per cent, or the mean squared error."""
    accuracy = event.means.get(f"accuracy_{suffix}")
    if accuracy is not None:
        return f"{100 * accuracy:.1f} %"
    error = event.means.get(f"error_{suffix}")
    return "not sent" if error is None else f"{error:.4g}"


def kilobytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1000:,.0f} kB"


def describe(event: Event) -> str | None:
    """One line about an event, or None for what needs none."""
    describers: dict[type[Event], Callable[..., str]] = {
        Listening: _describe_listening,
        Restarted: lambda item: f"{item.reason}: started anew, after the last finished round",
        Waiting: lambda item: f"waiting for devices: {item.online} of {item.needed} online",
        RoundStarted: lambda item: f"round {item.round}: asked {len(item.cohort)} devices",
        ReplyRefused: lambda item: f"round {item.round}: left out node {item.node}: {item.reason}",
        RoundRepeated: lambda item: f"round {item.round}: done again: {item.reason}",
        RoundFinished: _describe_round,
        BudgetSpent: lambda item: f"after round {item.round}: {item.reason}",
        Evaluated: _describe_evaluation,
    }
    describer = describers.get(type(event))
    return None if describer is None else describer(event)


def _describe_listening(event: Listening) -> str:
    guards = [f"trust {event.root_certificate}"] if event.root_certificate else ["plain HTTP"]
    guards += ["registered device keys only"] if event.node_auth else []
    return f"devices join at {event.address} ({', '.join(guards)})"


def _describe_round(event: RoundFinished) -> str:
    number, devices, received, trained, down, up, seconds, energy = _cells(event)
    if event.protection:
        shown = f"round {number}: {devices} devices, {up} up, {seconds} s; {event.protection}"
        central = ", ".join(f"{name} {value:.4g}" for name, value in (event.central or {}).items())
        return f"{shown}; on the server's data: {central}" if central else shown
    return (
        f"round {number}: {devices} devices, received {received}, trained {trained}, "
        f"{down} down, {up} up, {seconds} s, {energy} (estimated)"
    )


def _describe_evaluation(event: Evaluated) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in event.means.items())
    central = ", ".join(f"{name} {value:.4g}" for name, value in (event.central or {}).items())
    shown = f"after round {event.round}: {event.devices} devices evaluate: {figures or 'nothing'}"
    return f"{shown}; on the server's data: {central}" if central else shown
