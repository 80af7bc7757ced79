"""`rootlet`: one command for bundles, devices and the server.

A sub-command imports what it needs when it runs, so that `rootlet bundle` and `rootlet device` work
without the `[server]` extra.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from rootlet.cli_bundle import add_bundle_parser
from rootlet.cli_device import add_device_parser
from rootlet.cli_enrol import add_enrol_parser
from rootlet.cli_ledger import add_ledger_parser
from rootlet_runtime.errors import RootletError
from rootlet_server.bench.cli import add_bench_parser
from rootlet_server.cli_serve import add_serve_parser
from rootlet_server.cli_simulate import add_simulate_parser
from rootlet_server.cli_status import add_status_parser
from rootlet_server.cli_train import add_train_parser
from rootlet_server.demo.cli import add_demo_parser

_EXIT_FAILURE = 1
_EXIT_INTERRUPTED = 130
_SIMULATION_EXTRA = ("pyarrow", "ray")
_TRAINING_EXTRA = ("accelerate", "opacus", "pytorch_optimizer", "tensorboard")
_SERVER_EXTRA = ("flwr", "matplotlib", "onnx", "onnxscript", "rich", "sklearn", "torch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0, 1 for a refusal or failure, 130 after Ctrl-C.
    """
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except RootletError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extras = "server"
        if missing in _SIMULATION_EXTRA:
            extras = "server,simulation"
        elif missing in _TRAINING_EXTRA:
            extras = "server,training"
        elif missing not in _SERVER_EXTRA:
            raise
        return _fail(
            f"this command needs {missing}, which is not installed; run: "
            f'pip install "rootlet[{extras}]"'
        )
    except OSError as error:
        return _fail(_in_words(error))
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser with every sub-command, each of which sets `run`: from arguments to exit code."""
    parser = argparse.ArgumentParser(
        prog="rootlet",
        description="Federated edge learning with signed training graphs.",
    )
    parser.add_argument("--version", action="version", version=version("rootlet"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_bundle_parser(commands)
    add_device_parser(commands)
    add_enrol_parser(commands)
    add_ledger_parser(commands)
    add_serve_parser(commands)
    add_status_parser(commands)
    add_train_parser(commands)
    add_demo_parser(commands)
    add_simulate_parser(commands)
    add_bench_parser(commands)
    return parser


def _fail(message: str) -> int:
    print(f"rootlet: {message}", file=sys.stderr)
    return _EXIT_FAILURE


def _in_words(error: OSError) -> str:
    if error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}; give a path that this user can read and write"


if __name__ == "__main__":
    sys.exit(main())
