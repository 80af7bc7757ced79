"""The participation policy as options of a command."""

import argparse
from datetime import time

from rootlet.energy import EnergyBudget
from rootlet.policy import ParticipationPolicy
from rootlet.privacy_terms import PrivacyPolicy
from rootlet.secagg.policy import MIN_LIVE, SecurePolicy

_DEFAULT = ParticipationPolicy()


def add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `policy_of` reads."""
    group = parser.add_argument_group(
        "policy",
        "when this device may take part; by default on the mains and off cellular networks",
    )
    add = group.add_argument
    add(
        "--ignore-conditions", action="store_true", help="at any time, whatever the device is doing"
    )
    add("--allow-on-battery", action="store_true", help="also while not charging")
    add("--allow-metered", action="store_true", help="also over a cellular network")
    add("--only-when-idle", action="store_true", help="only while nobody else uses the device")
    add(
        "--battery-above",
        type=float,
        default=_DEFAULT.battery_above,
        metavar="FRACTION",
        help="only with more than this in the battery (default: %(default)s)",
    )
    add(
        "--quiet-hours",
        type=_hours,
        metavar="HH:MM-HH:MM",
        help="not between these local times, such as 22:00-07:00",
    )
    add("--max-rounds-per-day", type=int, metavar="N", help="at most N rounds a day")
    add(
        "--joules-per-round", type=float, metavar="J", help="refuse or stop a round beyond J joules"
    )
    add("--joules-per-day", type=float, metavar="J", help="stop training after J joules a day")


def add_privacy_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `secure_policy_of` and `privacy_policy_of` read."""
    add = parser.add_argument_group("privacy", "what this device insists on").add_argument
    add(
        "--min-live",
        type=int,
        default=MIN_LIVE,
        metavar="N",
        help="be in no sum of fewer devices (default: %(default)s)",
    )
    add(
        "--min-noise-multiplier",
        type=float,
        default=0.0,
        metavar="Z",
        help="take part in secure and private rounds with this much noise at least",
    )
    add("--max-epsilon", type=float, metavar="E", help="spend no more of this device's privacy")
    add(
        "--delta",
        type=float,
        default=PrivacyPolicy().delta,
        help="at which epsilon is told (default: %(default)s)",
    )


def secure_policy_of(arguments: argparse.Namespace) -> SecurePolicy:
    """What the options say of secure rounds.

    Raises:
        ConfigError: A value is outside its bounds.
    """
    return SecurePolicy(
        min_live=arguments.min_live, min_noise_multiplier=arguments.min_noise_multiplier
    )


def privacy_policy_of(arguments: argparse.Namespace) -> PrivacyPolicy:
    """What the options say of private rounds.

    Raises:
        ConfigError: A value is outside its bounds.
    """
    return PrivacyPolicy(
        max_epsilon=arguments.max_epsilon,
        delta=arguments.delta,
        min_noise_multiplier=arguments.min_noise_multiplier,
    )


def policy_of(arguments: argparse.Namespace) -> ParticipationPolicy:
    """The policy that the options describe.

    Raises:
        ConfigError: A value is outside its bounds.
    """
    free = arguments.ignore_conditions
    return ParticipationPolicy(
        charging=not (free or arguments.allow_on_battery),
        unmetered=not (free or arguments.allow_metered),
        idle=arguments.only_when_idle and not free,
        battery_above=0.0 if free else arguments.battery_above,
        quiet_hours=None if free else arguments.quiet_hours,
        max_rounds_per_day=arguments.max_rounds_per_day,
        energy=EnergyBudget(
            joules_per_round=arguments.joules_per_round, joules_per_day=arguments.joules_per_day
        ),
    )


def _hours(text: str) -> tuple[time, time]:
    start, _, end = text.partition("-")
    try:
        return time.fromisoformat(start), time.fromisoformat(end)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 22:00-07:00") from error
