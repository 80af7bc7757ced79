"""`rootlet ledger`: what left this device, when, and for whom.

Exit codes: 0 fine, 1 the ledger is broken, 2 wrong arguments.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rootlet import ledger
from rootlet.errors import LedgerError
from rootlet.ledger import Entry, Head

EXIT_OK, EXIT_BROKEN = 0, 1


def add_ledger_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `ledger`; it sets `run`, which returns an exit code."""
    parser = subparsers.add_parser("ledger", help="what left this device, when, and for whom")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("show", _show, "print the entries, the latest last"),
        ("verify", _verify, "hold every line to the chain of hashes"),
        ("export", _export, "copy the verified entries to a file, and print the head to keep"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument(
            "--state-dir", type=Path, required=True, metavar="DIR", help="the device's state"
        )
        if name == "show":
            command.add_argument("--last", type=int, metavar="N", help="only the last N entries")
            command.add_argument("--json", action="store_true", help="one JSON object a line")
        if name == "verify":
            command.add_argument(
                "--known", metavar="NUMBER:HASH", help="a head that was exported before"
            )
        if name == "export":
            command.add_argument("--out", type=Path, required=True, metavar="FILE")


def _show(args: argparse.Namespace) -> int:
    try:
        entries = ledger.read(args.state_dir)
    except LedgerError as error:
        return _broken(error)
    for entry in entries[-args.last :] if args.last else entries:
        print(_json(entry) if args.json else _line(entry))
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    known = None
    if args.known is not None:
        number, _, digest = args.known.partition(":")
        if not number.isdecimal() or len(digest) != len(ledger.GENESIS):
            print(f"rootlet: --known {args.known!r}: give NUMBER:HASH, as export prints it",
                  file=sys.stderr)  # fmt: skip
            return 2
        known = Head(int(number), digest)
    try:
        head = ledger.verify(args.state_dir, known=known)
    except LedgerError as error:
        return _broken(error)
    print(f"whole: {head.number} entries, head {head.number}:{head.hash}")
    return EXIT_OK


def _export(args: argparse.Namespace) -> int:
    try:
        head = ledger.verify(args.state_dir)
        entries = ledger.read(args.state_dir)
    except LedgerError as error:
        return _broken(error)
    args.out.write_text("".join(_json(entry) + "\n" for entry in entries), encoding="utf-8")
    print(f"{len(entries)} entries in {args.out}; keep this head elsewhere: "
          f"{head.number}:{head.hash}")  # fmt: skip
    return EXIT_OK


def _json(entry: Entry) -> str:
    head = {"number": entry.number, "time": entry.time, "kind": entry.kind}
    tail = {"previous": entry.previous, "hash": entry.hash}
    return json.dumps({**head, **entry.fields, **tail}, ensure_ascii=False)


def _line(entry: Entry) -> str:
    fields = "  ".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in entry.fields.items()
    )
    return f"{entry.number:>5}  {entry.time}  {entry.kind:<8}  {fields}"


def _broken(error: LedgerError) -> int:
    print(f"rootlet: {error}", file=sys.stderr)
    return EXIT_BROKEN
