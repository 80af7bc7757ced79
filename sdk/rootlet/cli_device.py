"""`rootlet device`: a device that joins from a shell, with its examples in a file.

It prints one plain line for each thing that happens. Interrupting it (Ctrl-C, or SIGTERM) makes it
leave once its last reply has been read; interrupting it again ends it at once.

Exit codes: 0 it left, 1 it could not go on, 2 wrong arguments, 130 it was interrupted twice.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rootlet.cli_policy import (
    add_policy_options,
    add_privacy_options,
    policy_of,
    privacy_policy_of,
    secure_policy_of,
)
from rootlet.client import LEAVE_TIMEOUT_S, DeviceClient
from rootlet.continual import ContinualConfig
from rootlet.data import ArrayData, load_npz
from rootlet.device_log import DeviceLog
from rootlet.errors import ConfigError
from rootlet.fleet.keys import NodeKey
from rootlet.status import DeviceEvent, DeviceState
from rootlet.store import Examples
from rootlet.train_config import TrainConfig
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.engines import ENGINES
from rootlet_runtime.errors import DataError, RootletError
from rootlet_runtime.examples import check_examples
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.replay import ReplaySettings
from rootlet_runtime.signing import load_public_key

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
LAST_EVALUATION_S = 30.0
"""How long a device stays after its last round for the server to ask how good the result is."""

_DESCRIPTION = """\
Join a federation: verify the bundle, train it on the examples of a file whenever the policy and the
server ask for it, and send the adapter back. Press Ctrl-C to leave."""


def add_device_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `device`; it sets `run`, which returns an exit code."""
    parser = subparsers.add_parser(
        "device", help="join a federation from this machine", description=_DESCRIPTION
    )
    parser.set_defaults(run=run_device)
    add = parser.add_argument
    add("--superlink", required=True, metavar="HOST:PORT", help="the server's address")
    add("--bundle", type=Path, required=True, metavar="FILE", help="what to train")
    add(
        "--trusted-key",
        type=Path,
        action="append",
        required=True,
        metavar="PUB.pem",
        help="a publisher whose bundles may run here; repeatable",
    )
    add(
        "--data",
        type=Path,
        required=True,
        metavar="FILE.npz",
        help="arrays x and y to learn from",
    )
    add(
        "--holdout",
        type=Path,
        metavar="FILE.npz",
        help="arrays x and y to measure on (default: every fifth example of --data)",
    )
    add(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the device remembers (default: nowhere, it forgets when it ends)",
    )
    add(
        "--keystore",
        choices=("file", "keyring", "none"),
        default="file",
        help="where the keys lie that the state directory is encrypted with: a file within it, "
        "the system's key store, or nowhere (it is not encrypted)",
    )
    add("--root-certificate", type=Path, metavar="CA.pem", help="who signed the server's TLS")
    add("--node-key", type=Path, metavar="FILE", help="identifies this device to the server")
    add(
        "--generate-node-key",
        action="store_true",
        help="make the file of --node-key where there is none",
    )
    add("--max-rounds", type=_positive, metavar="N", help="leave after N trained rounds")
    add("--num-threads", type=_positive, default=1, metavar="N", help="threads of one training")
    add("--engine", choices=sorted(ENGINES), default="onnxruntime", help="what runs the bundle")
    add(
        "--replay-bytes",
        type=_positive,
        metavar="N",
        help="keep a sample of all examples in N bytes of the state directory, and replay it",
    )
    add(
        "--distillation",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="learn from the last accepted adapter's outputs too, with this weight below 1",
    )
    add("--events", type=Path, metavar="FILE.jsonl", help="append every event as a line of JSON")
    add_policy_options(parser)
    add_privacy_options(parser)


def run_device(arguments: argparse.Namespace) -> int:
    """Takes part until interrupted, until its rounds are done, or until it cannot go on."""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_events_printed_once())
            return _take_part(arguments, stack)
    except (RootletError, OSError) as error:
        print(f"rootlet: {error}", file=sys.stderr)
        return EXIT_FAILED


def _take_part(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    keys = [load_public_key(path) for path in arguments.trusted_key]
    bundle = stack.enter_context(Bundle.load(arguments.bundle, trusted_keys=keys))
    data, node_key = _data(arguments, bundle.manifest), _node_key(arguments)
    state_dir = arguments.state_dir or Path(
        stack.enter_context(tempfile.TemporaryDirectory(prefix="rootlet-device-"))
    )
    log = stack.enter_context(DeviceLog(sys.stdout, arguments.events))
    visit = _Visit(arguments.max_rounds, log)
    client = stack.enter_context(
        DeviceClient(
            bundle,
            state_dir,
            policy=policy_of(arguments),
            train=_training(arguments, bundle.manifest),
            data=data,
            keystore=None if arguments.keystore == "none" else arguments.keystore,
            on_event=visit.hear,
        )
    )
    log.started(bundle.manifest, data)
    with _interruptions(visit.over):
        client.join(
            arguments.superlink,
            arguments.root_certificate,
            node_key,
            secure=secure_policy_of(arguments),
            privacy=privacy_policy_of(arguments),
        )
        visit.wait()
        has_left = client.leave(LEAVE_TIMEOUT_S)
    log.ended(client.status)
    return EXIT_OK if has_left and client.status.state is DeviceState.IDLE else EXIT_FAILED


class _Visit:
    """Knows when to leave: interrupted, out of rounds, or failed for good."""

    def __init__(self, max_rounds: int | None, log: DeviceLog) -> None:
        self.over = threading.Event()
        self._max_rounds = max_rounds
        self._log = log
        self._rounds = 0
        self._last_trained = threading.Event()

    def hear(self, event: DeviceEvent) -> None:
        """Reports an event, and counts the rounds."""
        self._log.event(event)
        self._rounds += event.kind == "trained"
        if event.kind in {"left", "gave up"}:
            self.over.set()
        if event.kind == "pushed" and self._rounds == self._max_rounds:
            self._last_trained.set()
            if event.message_type == "evaluate":
                self.over.set()

    def wait(self) -> None:
        """Waits until it is time to leave."""
        while not self.over.wait(0.5):
            if self._last_trained.is_set():
                self.over.wait(LAST_EVALUATION_S)
                return


@contextlib.contextmanager
def _interruptions(over: threading.Event) -> Iterator[None]:
    """The first interruption asks to leave, the second ends the process where it stands."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if over.is_set():
            os._exit(EXIT_INTERRUPTED)  # every file on disk is whole at any moment
        over.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _events_printed_once() -> Iterator[None]:
    """Keeps the client from logging, as warnings, the events that `DeviceLog` prints."""
    log = logging.getLogger("rootlet.client")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _training(arguments: argparse.Namespace, manifest: Manifest) -> TrainConfig:
    """How the options say that it trains."""
    replay = None
    if arguments.replay_bytes is not None:
        classifies = manifest.task == "classification"
        replay = ReplaySettings(
            quota_bytes=arguments.replay_bytes,
            selection="class_balanced" if classifies else "uniform",
        )
    return TrainConfig(
        num_threads=arguments.num_threads,
        engine=arguments.engine,
        continual=ContinualConfig(replay=replay, distillation=arguments.distillation),
    )


def _data(arguments: argparse.Namespace, manifest: Manifest) -> ArrayData:
    examples = _examples(arguments.data, manifest)
    if arguments.holdout is None:
        return ArrayData.split(examples)
    return ArrayData(examples, _examples(arguments.holdout, manifest))


def _examples(path: Path, manifest: Manifest) -> Examples:
    """The examples of a file, refused here rather than in a round."""
    x, y = load_npz(path)
    try:
        return check_examples(x, y, manifest)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _node_key(arguments: argparse.Namespace) -> NodeKey | None:
    path = arguments.node_key
    if path is None:
        if arguments.generate_node_key:
            raise ConfigError("--generate-node-key needs the file to make: add --node-key FILE")
        return None
    if arguments.generate_node_key and not path.exists():
        key = NodeKey.load_or_generate(path)
        print(
            f"node key: made {path}; give {path}.pub to the server's operator, for the folder of "
            "its --node-keys"
        )
        return key
    return NodeKey.load(path)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
