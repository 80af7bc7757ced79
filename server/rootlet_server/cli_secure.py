"""The options of `rootlet serve` that protect devices from the server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rootlet_runtime.signing import load_public_key, public_key_hex

if TYPE_CHECKING:
    from rootlet_server.federation.privacy import FederationPrivacy
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
        "--privacy",
        choices=("device", "example"),
        help="differential privacy: of a device's whole update, or of an example on a device",
    )
    add("--clip-norm", type=float, metavar="C", help="length of an update, or of a gradient")
    add("--noise-multiplier", type=float, metavar="Z", help="noise over C")
    add("--epsilon", type=float, help="the budget; a round beyond it is not begun")
    add("--delta", type=float, default=1e-5, help="(default: %(default)s)")
    add("--sample-rate", type=float, metavar="Q", help="of an example in a step, with example")
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


def privacy_settings(arguments: argparse.Namespace) -> "FederationPrivacy | None":
    """What the options ask for; None for no privacy.

    Raises:
        ServeConfigError: Some of the options that belong together are missing.
    """
    from rootlet_server.errors import ServeConfigError  # noqa: PLC0415
    from rootlet_server.federation.privacy import FederationPrivacy  # noqa: PLC0415

    needed = ["clip_norm", "noise_multiplier", "epsilon"]
    if arguments.privacy == "example":
        needed.append("sample_rate")
    given = [name for name in (*needed, "sample_rate") if getattr(arguments, name) is not None]
    if arguments.privacy is None:
        if given:
            raise ServeConfigError(
                f"--{given[0].replace('_', '-')} is given without --privacy device or example"
            )
        return None
    missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
    if missing:
        raise ServeConfigError(
            f"--privacy {arguments.privacy} needs {', '.join(missing)} too; no bound or budget is "
            "assumed"
        )
    return FederationPrivacy(
        unit=arguments.privacy,
        max_norm=arguments.clip_norm,
        noise_multiplier=arguments.noise_multiplier,
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        sample_rate=1.0 if arguments.sample_rate is None else arguments.sample_rate,
    )
