"""`rootlet enrol`: an authority vouches for devices, so that no server can invent them.

    rootlet enrol authority ca                                        who enrols, once; keep ca.pem
    rootlet enrol request --state-dir device-1                        on the device: prints its id
    rootlet enrol sign --authority ca.pem --device ID --name device-1 --out device-1.cert
    rootlet enrol install --state-dir device-1 --certificate device-1.cert --authority ca.pub.pem

The authority's private key must not lie on the server: whoever holds both can pretend to be a
crowd. Exit codes: 0 fine, 1 refused, 2 wrong arguments.
"""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rootlet.secagg.enrolment import Certificate, EnrolmentFolder
from rootlet.secagg.errors import EnrolmentError
from rootlet.state import StateDirectory
from rootlet_runtime import signing

DEFAULT_DAYS = 365


def add_enrol_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `enrol`; it sets `run`, which returns an exit code."""
    parser = subparsers.add_parser("enrol", help="vouch for devices in secure aggregation")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, text: str) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added.add_argument

    add = command("authority", _authority, "make an enrolment authority's key pair")
    add("stem", metavar="STEM", help="writes STEM.pem (keep it off the server) and STEM.pub.pem")
    add = command("request", _request, "print this device's id, for the authority to sign")
    add("--state-dir", type=Path, required=True, metavar="DIR", help="the device's state")
    add = command("sign", _sign, "sign a device's id with the authority's key")
    add("--authority", type=Path, required=True, metavar="KEY.pem")
    add("--device", required=True, metavar="ID", help="64 hexadecimal digits, as request prints")
    add("--name", required=True, help="for people")
    add("--days", type=int, default=DEFAULT_DAYS, help="valid for so long (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE")
    add = command("install", _install, "keep a certificate on the device that it is for")
    add("--state-dir", type=Path, required=True, metavar="DIR", help="the device's state")
    add("--certificate", type=Path, required=True, metavar="FILE")
    add("--authority", type=Path, required=True, metavar="PUB.pem")


def _authority(args: argparse.Namespace) -> int:
    private, public = signing.save_keypair(args.stem, signing.generate_keypair()[0])
    print(f"made {private} (keep it away from the server) and {public} (for server and devices)")
    return 0


def _request(args: argparse.Namespace) -> int:
    with StateDirectory(args.state_dir) as state:
        print(EnrolmentFolder(state.enrolment).device_id().hex())
    return 0


def _sign(args: argparse.Namespace) -> int:
    try:
        device = bytes.fromhex(args.device)
    except ValueError:
        raise EnrolmentError(
            f"--device {args.device!r:.80}: 64 hexadecimal digits are due"
        ) from None
    if args.days < 1:
        raise EnrolmentError(f"--days {args.days}: must be at least 1")
    certificate = Certificate.issue(
        signing.load_private_key(args.authority),
        device,
        name=args.name,
        expires=datetime.now(UTC) + timedelta(days=args.days),
    )
    args.out.write_bytes(certificate.raw)
    print(f"{args.out}: {args.name}, until {certificate.expires:%Y-%m-%d}")
    return 0


def _install(args: argparse.Namespace) -> int:
    authority = signing.load_public_key(args.authority)
    with StateDirectory(args.state_dir) as state:
        folder = EnrolmentFolder(state.enrolment)
        certificate = folder.install(args.certificate.read_bytes(), authority)
    print(
        f"enrolled as {certificate.name} until {certificate.expires:%Y-%m-%d}; from now on this "
        "device sends updates by secure aggregation only"
    )
    return 0
