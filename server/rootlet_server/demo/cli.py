"""``rootlet demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Eight device processes learn together on real data, offline, in under two minutes: a base is
trained, compiled into a signed bundle and federated over a real Flower SuperLink, and the demo
checks its own claim (exit code 1 if accuracy did not rise as stated)."""


def add_demo_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``demo`` to the sub-commands."""
    parser = commands.add_parser(
        "demo", help="watch real devices learn together", description=_DESCRIPTION
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("--out", type=Path, default=Path("rootlet-demo"), metavar="DIR",
        help="where this run's folder goes (default: %(default)s)")  # fmt: skip
    add("--devices", type=_count(2, 64), default=8, metavar="N", help="2 to 64 (default: 8)")
    add("--rounds", type=_count(1, 1000), default=10, metavar="N", help="default: 10")
    add("--rule", choices=("dfa", "backprop"), default="dfa",
        help="how credit is assigned (default: %(default)s)")  # fmt: skip
    add("--seed", type=_count(0, 2**31), default=0, metavar="N", help="deals the data (default: 0)")


def _count(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in {low}..{high}")
        return int(text)

    return parse


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415

    from rootlet_server.demo.account import DemoConfig  # noqa: PLC0415

    arguments.out.mkdir(parents=True, exist_ok=True)  # refused before torch is loaded
    console = Console()
    with console.status("loading torch"):
        from rootlet_server.demo.run import run_demo  # noqa: PLC0415
    config = DemoConfig(
        out=arguments.out,
        devices=arguments.devices,
        rounds=arguments.rounds,
        rule=arguments.rule,
        seed=arguments.seed,
    )
    return 0 if run_demo(config, console).holds else 1
