"""The Linux conditions reader, against trees copied from real machines and against this one."""

import os
from datetime import datetime

import pytest

from rootlet.conditions import DeviceConditions, read_conditions
from rootlet.policy import ParticipationPolicy, decide

THINKPAD = {
    "AC": {"type": "Mains", "online": "1"},
    "BAT0": {"type": "Battery", "status": "Charging", "capacity": "63", "present": "1"},
    "hidpp_battery_0": {
        "type": "Battery",
        "scope": "Device",
        "status": "Discharging",
        "capacity": "5",
        "online": "1",
    },
    "ucsi-source-psy-USBC000:001": {"type": "USB", "online": "0", "scope": "System"},
}
PHONE = {
    "battery": {"type": "Battery", "status": "Discharging", "capacity": "41", "present": "1"},
    "usb": {"type": "USB", "online": "0"},
    "wireless": {"type": "Wireless", "online": "0"},
}
BOARD_WITHOUT_CHARGER_ENTRY = {
    "axp20x-battery": {"type": "Battery", "status": "Full", "capacity": "100"}
}
ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "{wired}\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
    "{modem}\t00000000\t0100000A\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n"
    "{wired}\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
)


@pytest.fixture
def machine(tmp_path):
    """Builds the two pseudo file systems of a machine and reads its conditions."""

    def read(supplies, *, routes="", load="0.00", devtypes=(), threads=()):
        sysfs, proc = tmp_path / "sys", tmp_path / "proc"
        (sysfs / "class" / "power_supply").mkdir(parents=True)
        (proc / "net").mkdir(parents=True)
        (proc / "net" / "route").write_text(routes)
        (proc / "loadavg").write_text(f"{load} 0.10 0.05 1/234 5678\n")
        for name, files in supplies.items():
            folder = sysfs / "class" / "power_supply" / name
            folder.mkdir()
            for file, text in files.items():
                (folder / file).write_text(text + "\n")
        for interface, devtype in devtypes:
            folder = sysfs / "class" / "net" / interface
            folder.mkdir(parents=True)
            (folder / "uevent").write_text(f"DEVTYPE={devtype}\nINTERFACE={interface}\n")
        for number, (state, nice) in enumerate(threads):
            folder = proc / "self" / "task" / str(100 + number)
            folder.mkdir(parents=True)
            head = f"{100 + number} (an (odd) name) {state} " + "0 " * 15
            (folder / "stat").write_text(f"{head}{nice} 1 0 108377\n")
        return read_conditions(sysfs, proc)

    return read


def changed(supplies, name, **files):
    return supplies | {name: supplies[name] | files}


@pytest.mark.parametrize(
    ("supplies", "charging", "level"),
    [
        (THINKPAD, True, 0.63),
        (changed(THINKPAD, "AC", online="0"), False, 0.63),
        (changed(THINKPAD, "BAT0", status="Not charging"), True, 0.63),
        (changed(THINKPAD, "BAT0", status="Discharging"), False, 0.63),
        (PHONE, False, 0.41),
        (changed(changed(PHONE, "usb", online="1"), "battery", status="Charging"), True, 0.41),
        (changed(changed(PHONE, "wireless", online="1"), "battery", status="Full"), True, 0.41),
        (BOARD_WITHOUT_CHARGER_ENTRY, True, 1.0),
        (changed(BOARD_WITHOUT_CHARGER_ENTRY, "axp20x-battery", status="Unknown"), None, 1.0),
        (changed(BOARD_WITHOUT_CHARGER_ENTRY, "axp20x-battery", capacity="n/a"), True, None),
        (changed(PHONE, "battery", present="0"), True, None),
        ({}, True, None),
        (
            {
                "BAT0": {"type": "Battery", "status": "Discharging", "capacity": "20"},
                "BAT1": {"type": "Battery", "status": "Full", "capacity": "100"},
            },
            False,
            0.6,
        ),
    ],
)
def test_power_of_real_looking_machines(machine, supplies, charging, level):
    conditions = machine(supplies)
    assert conditions.charging is charging
    assert conditions.battery_level == level


@pytest.mark.parametrize(
    ("modem", "metric", "devtypes", "unmetered"),
    [
        ("wwan0", "700", [("wwan0", "wwan")], None),
        ("wwan0", "50", [("wwan0", "wwan")], False),
        ("usb0", "50", [("usb0", "wwan")], False),
        ("ppp0", "50", [], False),
        ("wlan0", "50", [("wlan0", "wlan")], None),
    ],
)
def test_only_a_cellular_default_route_is_known_to_be_metered(
    machine, modem, metric, devtypes, unmetered
):
    routes = ROUTES.format(wired="eth0", modem=modem, metric=metric)
    assert machine({}, routes=routes, devtypes=devtypes).unmetered is unmetered


@pytest.mark.parametrize("routes", ["", "Iface\n", "garbage\nmore garbage\n"])
def test_without_a_default_route_metering_is_unknown(machine, routes):
    assert machine({}, routes=routes).unmetered is None


def test_idle_compares_the_load_with_the_processors(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine({}, load="1.99").idle is True


def test_busy_from_half_of_the_processors_on(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine({}, load="2.00").idle is False


def test_own_training_does_not_make_a_device_look_used(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    threads = [("R", 10), ("S", 10), ("R", 0)]
    assert machine({}, load="1.20", threads=threads).idle is True


def test_the_app_s_own_foreground_work_does(machine, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert machine({}, load="1.20", threads=[("S", 10), ("R", 0)]).idle is False


def test_an_unreadable_load_leaves_idleness_unknown(machine):
    assert machine({}, load="n/a").idle is None


def test_a_system_without_sysfs_and_procfs_can_tell_nothing(tmp_path):
    assert read_conditions(tmp_path / "sys", tmp_path / "proc") == DeviceConditions()


def test_this_machine_gives_values_within_their_bounds():
    conditions = read_conditions()
    assert conditions.charging in {True, False, None}
    assert conditions.battery_level is None or 0.0 <= conditions.battery_level <= 1.0
    assert conditions.idle in {True, False}
    assert conditions.unmetered in {False, None}


def test_a_gateway_on_the_mains_meets_the_default_policy(machine):
    gateway = machine({}, routes=ROUTES.format(wired="eth0", modem="wlan0", metric="600"))
    decision = decide(
        ParticipationPolicy(), gateway, now=datetime(2026, 11, 23, 3, 0), rounds_today=0
    )
    assert decision.allowed
