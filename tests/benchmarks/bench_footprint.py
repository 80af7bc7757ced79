"""What a device installs: ``pip install rootlet`` against ``pip install flwr torch``.

    python tests/benchmarks/bench_footprint.py

Builds the wheel, installs each side in an empty virtual environment, counts the distributions and
the bytes of their files (pip and setuptools apart), and times imports in fresh interpreters. It
needs a package index with a CPU build of torch; ``--list-only`` installs nothing and counts what
the running environment holds of both sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from report import print_heading, print_table, verdict, with_spread

GOAL_DISTRIBUTIONS = 12
GOAL_SIZE = 0.18
ROOT = Path(__file__).parents[2]
PEER = ("flwr==1.41.0", "torch==2.13.0")
IMPORTS = {
    "rootlet": ("rootlet", "rootlet_runtime, onnxruntime"),
    "flwr + torch": ("flwr", "torch", "flwr, torch"),
}
NOT_COUNTED = ("pip", "setuptools")
# Runs in the environment that is measured.
COUNT = """
import json, pathlib, sysconfig
from importlib.metadata import distributions
sizes = {}
for found in distributions(path=[sysconfig.get_path("purelib")]):
    files = [found.locate_file(file) for file in found.files or ()]
    sizes[found.metadata["Name"]] = sum(f.stat().st_size for f in files if f.is_file())
print(json.dumps(sizes))
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help="timed starts of each import")
    parser.add_argument(
        "--list-only", action="store_true", help="install nothing; count what is installed here"
    )
    return parser.parse_args()


def output(*command: str | Path) -> str:
    """What a command prints.

    Raises:
        SystemExit: it failed; with its last words.
    """
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=1800, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"[-4000:])
    return result.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel of this working tree."""
    output(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT)
    return next(folder.glob("rootlet-*.whl"))


def install(folder: Path, *requirements: str | Path) -> Path:
    """A new environment with these requirements; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    output(python, "-m", "pip", "install", "--quiet", "--no-input", *requirements)
    return python


def sizes_installed(python: Path) -> dict[str, int]:
    """Bytes of every distribution in an environment, by name."""
    sizes: dict[str, int] = json.loads(output(python, "-c", COUNT))
    return {name: size for name, size in sizes.items() if name not in NOT_COUNTED}


def sizes_here(*requirements: str) -> dict[str, int]:
    """Bytes of the distributions that these requirements need, in the running environment."""
    sizes: dict[str, int] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        found = distribution(requirement.name)
        if canonicalize_name(requirement.name) in sizes:
            continue
        files = [Path(str(found.locate_file(file))) for file in found.files or ()]
        size = sum(file.stat().st_size for file in files if file.is_file())
        sizes[canonicalize_name(requirement.name)] = size
        needs = map(Requirement, found.requires or ())
        waiting += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return sizes


def import_seconds(python: Path, modules: str, runs: int) -> list[float]:
    """Seconds that an import adds to a fresh interpreter; the first run fills the file cache."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        output(python, "-c", "pass")
        middle = time.perf_counter()
        output(python, "-c", f"import {modules}")
        seconds.append(time.perf_counter() - middle - (middle - start))
    return seconds[1:]


def measure(folder: Path, runs: int) -> tuple[dict[str, dict[str, int]], list[tuple[str, str]]]:
    """The installed sizes of both sides, and the rows of import times."""
    wheel = build_wheel(folder)
    pythons = {
        "rootlet": install(folder / "rootlet", wheel),
        "flwr + torch": install(folder / "peer", *PEER),
    }
    sizes = {side: sizes_installed(python) for side, python in pythons.items()}
    times = [
        (modules, with_spread(import_seconds(pythons[side], modules, runs)))
        for side, imports in IMPORTS.items()
        for modules in imports
    ]
    return sizes, times


def main() -> None:
    """Run, print the tables, then both figures against their goals."""
    args = arguments()
    print_heading("What a device installs", ())
    if args.list_only:
        sizes = {"rootlet": sizes_here("rootlet"), "flwr + torch": sizes_here(*PEER)}
        times = []
    else:
        with tempfile.TemporaryDirectory() as folder:
            sizes, times = measure(Path(folder), args.runs)
    rows = [
        (side, str(len(found)), f"{sum(found.values()) / 1e6:.1f}") for side, found in sizes.items()
    ]
    print_table(("pip install", "distributions", "MB installed"), rows)
    for side, found in sizes.items():
        largest = sorted(found.items(), key=lambda item: -item[1])
        print(f"{side}: {', '.join(f'{name} {size / 1e6:.1f}' for name, size in largest)}")
    if times:
        print_table(("import", "seconds"), times)
    total = {side: sum(found.values()) for side, found in sizes.items()}
    count = len(sizes["rootlet"])
    print(f"distributions: {verdict(count, GOAL_DISTRIBUTIONS, '.0f')}")
    ratio = total["rootlet"] / total["flwr + torch"]
    print(f"installed size, rootlet / flwr + torch: ratio {verdict(ratio, GOAL_SIZE, '.3f')}")


if __name__ == "__main__":
    main()
