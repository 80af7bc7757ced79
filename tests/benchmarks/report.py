"""How a benchmark prints: the machine, a table, and a last line with the ratio against the goal."""

from __future__ import annotations

import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def print_heading(title: str, packages: Iterable[str]) -> None:
    """What was run, where, when and with what."""
    print(title)
    when, python = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", platform.python_version()
    print(f"{when}; {machine()}; Python {python}")
    print(", ".join(f"{name} {version(name)}" for name in packages), flush=True)


def machine() -> str:
    """The processor's name and the instructions that int8 products run on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512f", "avx512_vnni", "asimddp", "i8mm")
    found = [flag for flag in wanted if flag in info.get("flags", info.get("Features", "")).split()]
    count = sum(line.startswith("processor") for line in lines)
    return f"{count} CPUs, {info.get('model name', platform.machine())} ({' '.join(found)})"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table."""
    print()
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def with_spread(values: Sequence[float], form: str = ".2f") -> str:
    """``median [lower quartile, upper quartile]``."""
    lower, middle, upper = quartiles(values)
    return f"{middle:{form}} [{lower:{form}}, {upper:{form}}]"


def verdict(value: float, goal: float, form: str = ".2f") -> str:
    """``0.21 (goal at most 0.35: met)``."""
    return f"{value:{form}} (goal at most {goal:.2g}: {'met' if value <= goal else 'missed'})"
