"""`rootlet status`: where a federation stands, from its state directory.

Exit codes: 0 fine, 1 the run ended early or no server is there to go on, 2 wrong arguments.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rootlet_server.federation.status import FederationStatus

_DESCRIPTION = """\
Print where a federation stands: what the server does, the last finished round, its devices and
metrics, what was refused, and what was published. Reads files only: the server is not disturbed."""


def add_status_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add `status` to the sub-commands."""
    parser = commands.add_parser(
        "status", help="where a federation stands", description=_DESCRIPTION
    )
    parser.set_defaults(run=run_status)
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path("rootlet-serve"),
        metavar="DIR",
        help="that of `rootlet serve` (default: ./%(default)s)",
    )
    parser.add_argument(
        "--events", type=Path, metavar="FILE", help="event log (default: in --state-dir)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run_status(arguments: argparse.Namespace) -> int:
    """Print the status; returns the exit code."""
    from rootlet_server.federation.status import is_served, read_status  # noqa: PLC0415

    path = arguments.events or arguments.state_dir / "events.jsonl"
    if not path.is_file():
        print(
            f"rootlet: {path} is not there: no federation ran in {arguments.state_dir}; give the "
            "--state-dir of rootlet serve",
            file=sys.stderr,
        )
        return 2
    status, served = read_status(path), is_served(arguments.state_dir)
    if arguments.json:
        print(json.dumps({"served": served, **asdict(status)}))
    else:
        for name, value in _lines(status, served=served):
            print(f"{name:<12}{value}")
    return 0 if served or status.state == "finished" else 1


def _lines(s: "FederationStatus", *, served: bool) -> list[tuple[str, str]]:
    ago, server = time.time() - s.last_event_s, "running" if served else "not running"
    lines = [("server", f"{server}, {s.state}; last event {ago:.0f} s ago")]
    if s.address:
        lines.append(("address", s.address))
    lines.append(("devices", f"{s.online} online at the last look, {s.needed} needed"))
    if s.round:
        lines += [
            ("round", f"{s.round} finished: {s.answered} of {s.asked} devices, {s.round_s:.1f} s"),
            ("traffic", f"{s.bytes_down:,} bytes to devices, {s.bytes_up:,} bytes from them"),
        ]
        if not s.protection:  # else no device tells
            lines.append(("energy", f"{s.energy_estimated_j:.3g} J on the devices (estimated)"))
    for name, values in (("metrics", s.means), ("on server", s.central)):
        if values:
            lines.append((name, ", ".join(f"{key} {value:.4g}" for key, value in values.items())))
    if s.refused:
        lines.append(("refused", f"{s.refused}; the last: {s.last_refusal}"))
    unprotected = "none: updates are not clipped or noised, no epsilon is promised"
    lines.append(("privacy", s.protection or unprotected))
    if s.restarts:
        lines.append(("restarts", f"{s.restarts}, each after the last finished round"))
    if s.note:
        lines.append(("note", s.note))
    if s.error:
        lines.append(("error", s.error))
    if s.published:
        lines.append(("published", f"version {s.version}, {s.published}"))
    return lines
