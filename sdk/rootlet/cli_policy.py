"""The participation policy as options of a command."""

import argparse
from datetime import time

from rootlet.energy import EnergyBudget
from rootlet.policy import ParticipationPolicy

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
