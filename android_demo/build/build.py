"""Builds the demo and tests its library: ``python3 android_demo/build/build.py test``."""

import argparse
import sys
from pathlib import Path

from fetch import BuildError, cache_folder
from jvm import run_tests


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=cache_folder() / "out", help="for what is made")
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("test", help="run the library's tests on this machine's JVM")
    test.add_argument("only", nargs="*", help="test classes; all if none is named")
    arguments = parser.parse_args()
    try:
        run_tests(arguments.out, arguments.only)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
