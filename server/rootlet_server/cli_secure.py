"""The options of `rootlet serve` that protect devices from the server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rootlet_runtime.signing import load_public_key, public_key_hex

if TYPE_CHECKING:
    from rootlet_server.secagg.settings import SecureSettings


def add_secure_options(group: argparse._ArgumentGroup) -> None:
    """Add them to a group."""
    add = group.add_argument
    add(
        "--enrolment-authority",
        type=Path,
        action="append",
        default=[],
        metavar="PUB.pem",
        help="learn sums over enrolled devices only; the key of who enrols them; repeatable",
    )
    add("--min-live", type=int, metavar="N", help="fewest devices in a sum (default: 2/3, >= 5)")
    add("--value-bits", type=int, default=16, help="bits of a device's value (default: 16)")
    add(
        "--update-bound",
        type=float,
        default=4.0,
        help="where a value of an update saturates (default: %(default)s)",
    )
    add(
        "--group-size",
        type=int,
        metavar="N",
        help="sums of groups of so many, and their median, against poisoning (default: one sum)",
    )


def secure_settings(arguments: argparse.Namespace) -> "SecureSettings | None":
    """What the options ask for; None for updates in clear."""
    from rootlet_server.secagg.settings import SecureSettings  # noqa: PLC0415

    if not arguments.enrolment_authority:
        return None
    keys = [public_key_hex(load_public_key(path)) for path in arguments.enrolment_authority]
    return SecureSettings(
        authorities=tuple(keys),
        value_bits=arguments.value_bits,
        bound=arguments.update_bound,
        min_live=arguments.min_live,
        group_size=arguments.group_size,
    )
