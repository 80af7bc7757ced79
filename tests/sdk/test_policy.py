"""The participation policy: every requirement, every unknown, every boundary."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, timezone

import pytest

from rootlet.conditions import DeviceConditions
from rootlet.energy import EnergyBudget, EnergySpent
from rootlet.errors import ConfigError
from rootlet.policy import ParticipationPolicy, decide

NOON = datetime(2026, 11, 23, 12, 0)
GOOD = DeviceConditions(charging=True, battery_level=0.9, unmetered=True, idle=True)
NOTHING_KNOWN = DeviceConditions()
NO_REQUIREMENT = ParticipationPolicy(charging=False, unmetered=False, battery_above=0.0)
NIGHT = (time(22, 0), time(7, 0))
DAY = (time(9, 0), time(17, 0))


def policy(**requirements: object) -> ParticipationPolicy:
    return replace(NO_REQUIREMENT, **requirements)


CASES = {
    # requirement, condition, reasons
    "defaults on a good device": (ParticipationPolicy(), {}, ()),
    "nothing asked, nothing known": (NO_REQUIREMENT, "unknown", ()),
    "charging": (policy(charging=True), {"charging": True}, ()),
    "not charging": (policy(charging=True), {"charging": False}, ("not charging",)),
    "charging unknown": (policy(charging=True), {"charging": None}, ("charging is unknown",)),
    "not charging, not asked": (NO_REQUIREMENT, {"charging": False}, ()),
    "unmetered": (policy(unmetered=True), {"unmetered": True}, ()),
    "metered": (policy(unmetered=True), {"unmetered": False}, ("the network is metered",)),
    "metering unknown": (policy(unmetered=True), {"unmetered": None}, ()),
    "metered, not asked": (NO_REQUIREMENT, {"unmetered": False}, ()),
    "idle": (policy(idle=True), {"idle": True}, ()),
    "in use": (policy(idle=True), {"idle": False}, ("the device is in use",)),
    "idle unknown": (policy(idle=True), {"idle": None}, ("idleness is unknown",)),
    "in use, not asked": (NO_REQUIREMENT, {"idle": False}, ()),
    "battery above": (policy(battery_above=0.2), {"battery_level": 0.21}, ()),
    "battery equal": (
        policy(battery_above=0.2),
        {"battery_level": 0.2},
        ("the battery is at 20%, not above 20%",),
    ),
    "battery below, though charging": (
        policy(battery_above=0.2),
        {"battery_level": 0.05, "charging": True},
        ("the battery is at 5%, not above 20%",),
    ),
    "battery empty, nothing asked": (NO_REQUIREMENT, {"battery_level": 0.0}, ()),
    "no battery, on the mains": (
        policy(battery_above=0.2),
        {"battery_level": None, "charging": True},
        (),
    ),
    "battery unknown, not charging": (
        policy(battery_above=0.2),
        {"battery_level": None, "charging": False},
        ("the battery level is unknown",),
    ),
    "battery and charging unknown": (
        policy(battery_above=0.2),
        {"battery_level": None, "charging": None},
        ("the battery level is unknown",),
    ),
    "defaults, nothing known": (
        ParticipationPolicy(),
        "unknown",
        ("charging is unknown", "the battery level is unknown"),
    ),
    "everything against": (
        ParticipationPolicy(idle=True),
        {"charging": False, "unmetered": False, "idle": False, "battery_level": 0.1},
        (
            "not charging",
            "the network is metered",
            "the device is in use",
            "the battery is at 10%, not above 20%",
        ),
    ),
}


@pytest.mark.parametrize(("asked", "condition", "reasons"), CASES.values(), ids=CASES)
def test_each_requirement_against_each_condition(asked, condition, reasons):
    conditions = NOTHING_KNOWN if condition == "unknown" else replace(GOOD, **condition)
    decision = decide(asked, conditions, now=NOON, rounds_today=0)
    assert decision.reasons == reasons
    assert decision.allowed is (not reasons)


@pytest.mark.parametrize(
    ("quiet_hours", "clock", "allowed"),
    [
        (NIGHT, time(21, 59, 59, 999999), True),
        (NIGHT, time(22, 0), False),
        (NIGHT, time(23, 59, 59), False),
        (NIGHT, time(0, 0), False),
        (NIGHT, time(6, 59, 59, 999999), False),
        (NIGHT, time(7, 0), True),
        (DAY, time(8, 59, 59), True),
        (DAY, time(9, 0), False),
        (DAY, time(16, 59, 59), False),
        (DAY, time(17, 0), True),
        (DAY, time(0, 0), True),
        ((time(0, 0), time(6, 0)), time(0, 0), False),
        ((time(22, 0), time(0, 0)), time(23, 59), False),
        ((time(22, 0), time(0, 0)), time(0, 0), True),
    ],
)
def test_quiet_hours_begin_at_their_start_and_end_before_their_end(quiet_hours, clock, allowed):
    now = datetime.combine(NOON.date(), clock)
    decision = decide(policy(quiet_hours=quiet_hours), GOOD, now=now, rounds_today=0)
    assert decision.allowed is allowed


def test_quiet_hours_follow_the_wall_clock_of_the_time_zone_given():
    local = datetime(2026, 11, 23, 23, 0, tzinfo=timezone(timedelta(hours=9)))
    decision = decide(policy(quiet_hours=NIGHT), GOOD, now=local, rounds_today=0)
    assert decision.reasons == ("quiet hours 22:00 to 07:00",)


@pytest.mark.parametrize(
    ("limit", "rounds_today", "allowed"),
    [(1, 0, True), (1, 1, False), (3, 2, True), (3, 3, False), (3, 9, False), (None, 10**6, True)],
)
def test_the_rounds_of_a_day_are_bounded(limit, rounds_today, allowed):
    decision = decide(policy(max_rounds_per_day=limit), GOOD, now=NOON, rounds_today=rounds_today)
    assert decision.allowed is allowed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"battery_above": -0.1}, "battery_above is -0.1"),
        ({"battery_above": 1.0}, "battery_above is 1.0"),
        ({"battery_above": 20}, "battery_above is 20"),
        ({"battery_above": float("nan")}, "battery_above is nan"),
        ({"max_rounds_per_day": 0}, "max_rounds_per_day is 0"),
        ({"quiet_hours": (time(8), time(8))}, "either no time or all day"),
        ({"quiet_hours": (time(8, tzinfo=UTC), time(9))}, "time zone"),
    ],
)
def test_an_impossible_policy_is_refused_with_its_value(values, message):
    with pytest.raises(ConfigError, match=message):
        ParticipationPolicy(**values)


@pytest.mark.parametrize(
    ("limit", "spent", "reason"),
    [
        (None, EnergySpent(joules=1e9), ()),
        (5.0, None, ()),
        (5.0, EnergySpent(joules=4.999), ()),
        (
            5.0,
            EnergySpent(joules=5.02, method="estimated"),
            ("the day's energy is used up: 5.02 of 5 J (estimated)",),
        ),
    ],
)
def test_the_energy_of_a_day_is_bounded(limit, spent, reason):
    asked = policy(energy=EnergyBudget(joules_per_day=limit))
    decision = decide(asked, GOOD, now=NOON, rounds_today=0, energy_today=spent)
    assert decision.reasons == reason
    assert decision.allowed == (not reason)
