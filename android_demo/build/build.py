"""Builds the demo and tests its library: ``python3 android_demo/build/build.py test``."""

import argparse
import os
import sys
from pathlib import Path

from apk import build_apk
from fetch import BuildError
from jvm import OUT, classpath_of_tests, engine_options, java_command, run_tests


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="for what is made")
    commands = parser.add_subparsers(dest="command", required=True)
    test = commands.add_parser("test", help="run the library's tests on this machine's JVM")
    test.add_argument("only", nargs="*", help="test classes; all if none is named")
    apk = commands.add_parser("apk", help="build, sign and verify the demo's APK")
    apk.add_argument("--bundle", type=Path, help="that it ships; the tests' by default")
    apk.add_argument("--publisher", type=Path, help="file with its signer's hexadecimal key")
    run = commands.add_parser("run", help="run a class of the tests, once they have been built")
    run.add_argument("main", help="the class")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="for it")
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            before, engine = engine_options(arguments.out)
            classpath = classpath_of_tests(arguments.out)
            command = [*before, *java_command(classpath, arguments.main, *engine)]
            command += arguments.arguments
            os.execvp(command[0], command)  # noqa: S606 (no shell is wanted)
        if arguments.command == "apk":
            demo = arguments.out / "reference/demo"
            bundle = arguments.bundle or demo / "digits.rootlet"
            build_apk(arguments.out, bundle, arguments.publisher or demo / "publisher.hex")
        else:
            run_tests(arguments.out, arguments.only)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
