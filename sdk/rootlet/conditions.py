"""What a device can tell about itself: power, network and use; on Linux from sysfs and procfs.

An app on another system gives ``DeviceClient`` its own function that returns ``DeviceConditions``.
``None`` means that the device cannot tell; `rootlet.policy` says what that counts as.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

IDLE_LOAD_PER_CPU = 0.5
"""A device is idle while others keep fewer than half of its processors busy (one-minute mean)."""

_CHARGERS = frozenset({"Mains", "USB", "Wireless"})
_BATTERIES = frozenset({"Battery", "UPS"})
_CELLULAR_PREFIXES = ("wwan", "ppp", "rmnet")
_NICE_FIELD = 16  # of /proc/<pid>/stat, counted after the parenthesised name


@dataclass(frozen=True, kw_only=True)
class DeviceConditions:
    """What holds on the device now; None where it cannot tell.

    Attributes:
        charging: On a charger or on the mains, and not running a battery down.
        battery_level: Fraction of a full battery, 0 to 1; None also where there is no battery.
        unmetered: Whether the network is not billed by the byte.
        idle: Whether nobody else is using the device.
    """

    charging: bool | None = None
    battery_level: float | None = None
    unmetered: bool | None = None
    idle: bool | None = None


def read_conditions(
    sysfs_root: Path = Path("/sys"), proc_root: Path = Path("/proc")
) -> DeviceConditions:
    """Reads the conditions of a Linux device; other systems get None for everything.

    Power comes from ``class/power_supply``. A device that lists no supply of its own is on the
    mains: a gateway or a server counts as charging and has no battery level. Batteries of a mouse
    or a headset (``scope`` Device) are left out.

    The network is metered when the default IPv4 route leaves through a cellular modem. Anything
    else is unknown: whether a Wi-Fi is somebody's hotspot is not in sysfs.

    A device is idle while its one-minute load, less the running low-priority threads of this
    process (its own training), is under half a processor per processor.

    Args:
        sysfs_root: Where sysfs is mounted.
        proc_root: Where procfs is mounted.
    """
    supplies = _read_supplies(sysfs_root)
    if supplies is None:
        charging, level = None, None
    else:
        charging, level = _charging(supplies), _battery_level(supplies)
    return DeviceConditions(
        charging=charging,
        battery_level=level,
        unmetered=_unmetered(sysfs_root, proc_root),
        idle=_idle(proc_root),
    )


@dataclass(frozen=True)
class _Supply:
    kind: str
    online: bool
    status: str
    level: float | None


def _read_supplies(sysfs_root: Path) -> list[_Supply] | None:
    if not (sysfs_root / "class").is_dir():
        return None
    supplies = []
    for folder in _children(sysfs_root / "class" / "power_supply"):
        if _text(folder / "scope") == "Device" or _text(folder / "present") == "0":
            continue
        supplies.append(
            _Supply(
                kind=_text(folder / "type"),
                online=_text(folder / "online") not in {"", "0"},
                status=_text(folder / "status"),
                level=_fraction(_text(folder / "capacity")),
            )
        )
    return supplies


def _charging(supplies: Iterable[_Supply]) -> bool | None:
    chargers = [supply for supply in supplies if supply.kind in _CHARGERS]
    batteries = [supply for supply in supplies if supply.kind in _BATTERIES]
    if not batteries:
        return True
    if all(battery.status == "Discharging" for battery in batteries):
        return False
    if chargers:
        return any(charger.online for charger in chargers)
    if all(battery.status in {"", "Unknown"} for battery in batteries):
        return None
    return all(battery.status != "Discharging" for battery in batteries)


def _battery_level(supplies: Iterable[_Supply]) -> float | None:
    levels = [
        supply.level
        for supply in supplies
        if supply.kind in _BATTERIES and supply.level is not None
    ]
    return sum(levels) / len(levels) if levels else None


def _unmetered(sysfs_root: Path, proc_root: Path) -> bool | None:
    interface = _default_interface(_text(proc_root / "net" / "route"))
    if interface is None:
        return None
    uevent = _text(sysfs_root / "class" / "net" / interface / "uevent")
    cellular = "DEVTYPE=wwan" in uevent.split() or interface.startswith(_CELLULAR_PREFIXES)
    return False if cellular else None


def _default_interface(routes: str) -> str | None:
    """The interface of the default route with the lowest metric."""
    rows = [line.split() for line in routes.splitlines()[1:]]
    defaults = [
        (int(row[6]), row[0])
        for row in rows
        if len(row) > 7 and row[1] == "00000000" and row[7] == "00000000" and row[6].isdigit()
    ]
    return min(defaults)[1] if defaults else None


def _idle(proc_root: Path) -> bool | None:
    try:
        load = float(_text(proc_root / "loadavg").split()[0])
    except (ValueError, IndexError):
        return None
    busy = load - _own_training_threads(proc_root)
    return busy < IDLE_LOAD_PER_CPU * (os.cpu_count() or 1)


def _own_training_threads(proc_root: Path) -> int:
    """Threads of this process that run now at lowered priority."""
    running = 0
    for thread in _children(proc_root / "self" / "task"):
        fields = _text(thread / "stat").rpartition(")")[2].split()
        if len(fields) > _NICE_FIELD and fields[0] == "R" and int(fields[_NICE_FIELD]) > 0:
            running += 1
    return running


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """A small kernel file; empty where it is absent or its driver does not answer."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _fraction(percent: str) -> float | None:
    return min(int(percent), 100) / 100 if percent.isdigit() else None
