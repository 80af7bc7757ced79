"""When a device may take part: a pure decision over conditions, clock and rounds of the day.

Every requirement is checked, so a refusal names all of its reasons. A condition that the device
cannot tell (``None``) is treated as the platform schedulers treat it:

| condition | unknown counts as | because |
|---|---|---|
| charging | not charging | Android runs a charging job only on a known charger |
| battery level | met on a charger, else not | on the mains there may be no battery to tell of |
| unmetered | unmetered | GLib's ``GNetworkMonitor`` does the same; phones report metering |
| idle | in use | nobody's foreground work is slowed down on a guess |
"""

from dataclasses import dataclass
from datetime import datetime, time

from rootlet.conditions import DeviceConditions
from rootlet.energy import EnergyBudget, EnergySpent
from rootlet.errors import ConfigError

NO_LIMIT = EnergyBudget()


@dataclass(frozen=True, kw_only=True)
class ParticipationPolicy:
    """What must hold before a device activates, pulls or trains.

    Attributes:
        charging: Require a charger or mains power.
        unmetered: Require a network that is not billed by the byte.
        idle: Require a device that nobody else is using.
        battery_above: Fraction of a full battery, 0 to below 1; the level must exceed it.
            0 asks for nothing.
        quiet_hours: Local wall-clock times ``(start, end)`` between which nothing runs; the start
            is quiet, the end is not, and a start after the end spans midnight.
        max_rounds_per_day: Most rounds trained in one local calendar day, at least 1.
        energy: Most joules that training may spend in a round and in a day.

    Raises:
        ConfigError: A value is outside its bounds.
    """

    charging: bool = True
    unmetered: bool = True
    idle: bool = False
    battery_above: float = 0.2
    quiet_hours: tuple[time, time] | None = None
    max_rounds_per_day: int | None = None
    energy: EnergyBudget = NO_LIMIT

    def __post_init__(self) -> None:
        if not 0.0 <= self.battery_above < 1.0:
            raise ConfigError(
                f"battery_above is {self.battery_above}, outside 0 <= battery_above < 1: "
                "give a fraction of a full battery, such as 0.2"
            )
        if self.quiet_hours is not None:
            _check_quiet_hours(self.quiet_hours)
        if self.max_rounds_per_day is not None and self.max_rounds_per_day < 1:
            raise ConfigError(
                f"max_rounds_per_day is {self.max_rounds_per_day}, below 1: "
                "give at least 1, None for no limit, or do not join"
            )


@dataclass(frozen=True)
class Decision:
    """Whether the device may take part now; ``reasons`` is empty exactly when it may."""

    allowed: bool
    reasons: tuple[str, ...] = ()


def decide(
    policy: ParticipationPolicy,
    conditions: DeviceConditions,
    *,
    now: datetime,
    rounds_today: int,
    energy_today: EnergySpent | None = None,
) -> Decision:
    """Decides whether a device may take part; no clock, no file and no state is touched.

    Args:
        policy: What must hold.
        conditions: What holds, as far as the device can tell.
        now: The device's local wall clock.
        rounds_today: Rounds already trained in the calendar day of ``now``.
        energy_today: What training has spent in that day; None for nothing.

    Returns:
        The decision, with every reason against in the order of the policy's fields.
    """
    reasons = [
        reason
        for reason in (
            _power_reason(policy, conditions),
            _network_reason(policy, conditions),
            _idle_reason(policy, conditions),
            _battery_reason(policy, conditions),
            _quiet_reason(policy, now.time()),
            _rounds_reason(policy, rounds_today),
            _energy_reason(policy, energy_today),
        )
        if reason is not None
    ]
    return Decision(allowed=not reasons, reasons=tuple(reasons))


def _power_reason(policy: ParticipationPolicy, conditions: DeviceConditions) -> str | None:
    if not policy.charging or conditions.charging:
        return None
    return "not charging" if conditions.charging is False else "charging is unknown"


def _network_reason(policy: ParticipationPolicy, conditions: DeviceConditions) -> str | None:
    return "the network is metered" if policy.unmetered and conditions.unmetered is False else None


def _idle_reason(policy: ParticipationPolicy, conditions: DeviceConditions) -> str | None:
    if not policy.idle or conditions.idle:
        return None
    return "the device is in use" if conditions.idle is False else "idleness is unknown"


def _battery_reason(policy: ParticipationPolicy, conditions: DeviceConditions) -> str | None:
    if policy.battery_above == 0.0:
        return None
    if conditions.battery_level is None:
        return None if conditions.charging else "the battery level is unknown"
    if conditions.battery_level > policy.battery_above:
        return None
    return f"the battery is at {conditions.battery_level:.0%}, not above {policy.battery_above:.0%}"


def _quiet_reason(policy: ParticipationPolicy, clock: time) -> str | None:
    if policy.quiet_hours is None:
        return None
    start, end = policy.quiet_hours
    quiet = start <= clock < end if start < end else clock >= start or clock < end
    return f"quiet hours {start:%H:%M} to {end:%H:%M}" if quiet else None


def _rounds_reason(policy: ParticipationPolicy, rounds_today: int) -> str | None:
    if policy.max_rounds_per_day is None or rounds_today < policy.max_rounds_per_day:
        return None
    return f"{rounds_today} rounds today, the most is {policy.max_rounds_per_day}"


def _energy_reason(policy: ParticipationPolicy, spent: EnergySpent | None) -> str | None:
    most = policy.energy.joules_per_day
    if most is None or spent is None or spent.joules < most:
        return None
    return f"the day's energy is used up: {spent.joules:.3g} of {most:.3g} J ({spent.method})"


def _check_quiet_hours(quiet_hours: tuple[time, time]) -> None:
    start, end = quiet_hours
    if start == end:
        raise ConfigError(
            f"quiet_hours starts and ends at {start:%H:%M}, which is either no time or all day: "
            "give two different times, or None for no quiet hours"
        )
    if start.tzinfo is not None or end.tzinfo is not None:
        raise ConfigError(
            f"quiet_hours {start.isoformat()} to {end.isoformat()} carry a time zone: "
            "give plain local wall-clock times"
        )
