"""Meters on files laid out as sysfs lays them out."""

from pathlib import Path

import pytest

from rootlet_runtime import Meter


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    """Two packages, the first with cores and memory below it, and a copy behind another driver."""
    powercap = tmp_path / "class" / "powercap"
    zones = {
        "intel-rapl:0": ("package-0", 1_000_000),
        "intel-rapl:0:0": ("core", 400_000),
        "intel-rapl:0:1": ("dram", 50_000),
        "intel-rapl:1": ("package-1", 2_000_000),
        "intel-rapl-mmio:0": ("package-0", 1_000_000),
    }
    for zone, (name, energy) in zones.items():
        write(powercap / zone, name=name, energy_uj=energy, max_energy_range_uj=10_000_000)
    write(powercap / "intel-rapl", enabled=1)
    return powercap


def test_rapl_sums_packages_and_memory_and_nothing_twice(rapl: Path, tmp_path: Path) -> None:
    with Meter(tmp_path) as meter:
        assert (meter.source, meter.read()) == ("rapl", 0.0)
        write(rapl / "intel-rapl:0", energy_uj=1_500_000)
        write(rapl / "intel-rapl:0:0", energy_uj=800_000)
        write(rapl / "intel-rapl:0:1", energy_uj=150_000)
        write(rapl / "intel-rapl:1", energy_uj=2_250_000)
        write(rapl / "intel-rapl-mmio:0", energy_uj=1_500_000)
        assert meter.read() == pytest.approx(0.5 + 0.1 + 0.25)
    assert meter.read() is None


def test_a_counter_that_wraps_around_goes_on(rapl: Path, tmp_path: Path) -> None:
    with Meter(tmp_path) as meter:
        write(rapl / "intel-rapl:0", energy_uj=9_999_000)
        assert meter.read() == pytest.approx(8.999)
        write(rapl / "intel-rapl:0", energy_uj=1_000)
        assert meter.read() == pytest.approx(8.999 + 0.002)


def battery(root: Path, name: str = "BAT0", **files: object) -> None:
    supply = root / "class" / "power_supply" / name
    write(supply, **({"type": "Battery", "status": "Discharging"} | files))


@pytest.mark.parametrize("broken", ["", "no number"])
def test_an_unreadable_counter_leaves_the_battery(rapl: Path, tmp_path: Path, broken: str) -> None:
    write(rapl / "intel-rapl:1", energy_uj=broken)
    battery(tmp_path, power_now=1_000_000)
    with Meter(tmp_path) as meter:
        assert meter.source == "battery"


def test_a_refused_counter_leaves_the_battery(rapl: Path, tmp_path: Path) -> None:
    """The kernel refuses the counter to all but root; reading a folder is refused to everyone."""
    counter = rapl / "intel-rapl:1" / "energy_uj"
    counter.unlink()
    counter.mkdir()
    battery(tmp_path, power_now=1_000_000)
    with Meter(tmp_path) as meter:
        assert meter.source == "battery"
    (tmp_path / "class" / "power_supply" / "BAT0" / "status").write_text("Full\n")
    with Meter(tmp_path) as meter:
        assert (meter.source, meter.read()) == (None, None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_batterys_power_is_integrated(tmp_path: Path) -> None:
    """2 W, then 4 W after 10 s, then 4 W for 5 s: 30 J and 20 J."""
    clock = Clock()
    battery(tmp_path, power_now=2_000_000)
    with Meter(tmp_path, clock) as meter:
        clock.now += 10
        battery(tmp_path, power_now=4_000_000)
        assert meter.read() == pytest.approx(30)
        clock.now += 5
        assert meter.read() == pytest.approx(50)


def test_current_times_voltage_is_power_of_all_batteries(tmp_path: Path) -> None:
    clock = Clock()
    battery(tmp_path, current_now=-500_000, voltage_now=4_000_000)
    battery(tmp_path, "BAT1", power_now=1_000_000)
    battery(tmp_path, "BAT2", status="Full", power_now=9_000_000)
    battery(tmp_path, "mouse", scope="Device", power_now=9_000_000)
    with Meter(tmp_path, clock) as meter:
        clock.now += 2
        assert meter.read() == pytest.approx(2 * (0.5 * 4 + 1))


@pytest.mark.parametrize(
    ("before", "after", "joules"),
    [
        ({"energy_now": 50_000_000}, {"energy_now": 49_990_000}, 36.0),
        (
            {"charge_now": 1_000_000, "voltage_now": 4_000_000},
            {"charge_now": 999_000, "voltage_now": 4_000_000},
            14.4,
        ),
    ],
    ids=["energy", "charge"],
)
def test_a_battery_that_tells_only_its_content(
    before: dict[str, int], after: dict[str, int], joules: float, tmp_path: Path
) -> None:
    battery(tmp_path, **before)
    with Meter(tmp_path) as meter:
        battery(tmp_path, **after)
        assert meter.read() == pytest.approx(joules)


def test_a_charger_plugged_in_ends_the_measurement_for_good(tmp_path: Path) -> None:
    battery(tmp_path, power_now=2_000_000)
    with Meter(tmp_path) as meter:
        assert meter.read() is not None
        battery(tmp_path, status="Charging")
        assert meter.read() is None
        battery(tmp_path, status="Discharging")
        assert (meter.read(), meter.source) == (None, None)


def test_a_device_without_a_meter_has_none(tmp_path: Path) -> None:
    write(tmp_path / "class" / "power_supply" / "AC", type="Mains", online=1)
    with Meter(tmp_path) as meter:
        assert (meter.source, meter.read()) == (None, None)
