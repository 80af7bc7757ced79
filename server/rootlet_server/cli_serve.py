"""`rootlet serve`: a federation from the shell, with a live table where there is a terminal."""

import argparse
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet.compression import KINDS
from rootlet_runtime.signing import load_public_key
from rootlet_server import federation
from rootlet_server.cli_secure import add_secure_options, privacy_settings, secure_settings
from rootlet_server.federation.strategies import STRATEGIES

if TYPE_CHECKING:
    from rootlet_server.federation.config import TlsChoice

DEFAULT_PORT = 9444

_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_DESCRIPTION = """\
Start a Flower SuperLink, wait for devices, run rounds of federated learning over the adapters of a
bundle, and write the improved bundle. Interrupted, the same command goes on after the last finished
round."""


def add_serve_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add `serve` to the sub-commands."""
    parser = commands.add_parser(
        "serve", help="federate a bundle over a Flower SuperLink", description=_DESCRIPTION
    )
    parser.set_defaults(run=run_serve)
    required = parser.add_argument_group("required")
    required.add_argument("--bundle", type=Path, required=True, metavar="FILE")
    required.add_argument(
        "--trusted-key",
        action="append",
        required=True,
        metavar="KEY",
        help="a publisher's public key, as a PEM file or 64 hexadecimal digits; repeatable",
    )
    required.add_argument(
        "--signing-key",
        type=Path,
        required=True,
        metavar="FILE",
        help="the private key that signs the improved bundle",
    )
    _add_round_options(parser.add_argument_group("rounds"))
    add_secure_options(parser.add_argument_group("privacy"))
    _add_strategy_options(parser.add_argument_group("strategy"))
    _add_update_options(parser.add_argument_group("updates"))
    _add_network_options(parser.add_argument_group("network"))
    _add_file_options(parser.add_argument_group("files"))


def _add_round_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rounds", type=int, default=5, help="how many rounds (default: %(default)s)")
    add(
        "--min-devices",
        type=int,
        default=2,
        help="devices that a round waits for (default: %(default)s)",
    )
    add("--cohort-size", type=int, help="devices asked in a round (default: all online)")
    add("--epochs", type=int, help="passes over a device's examples (default: the bundle's)")
    add("--batch-size", type=int, help="examples in a step (default: the bundle's)")
    add("--learning-rate", type=float, help="step size (default: the bundle's)")
    add(
        "--deadline",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long a round waits for answers (default: %(default)s)",
    )
    add(
        "--max-update-norm",
        type=float,
        default=1e4,
        metavar="L",
        help="leave out an update that is longer (default: %(default)g)",
    )
    add(
        "--wait",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long a round waits for enough devices (default: %(default)s)",
    )


def _add_strategy_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--strategy",
        metavar="NAME",
        help=f"{', '.join(STRATEGIES)} (default: loramean where the bundle's A learns, else "
        "fedavg)",
    )
    add(
        "--strategy-option",
        action="append",
        type=_option,
        default=[],
        metavar="KEY=VALUE",
        help="an option of the strategy (docs/strategies.md); repeatable",
    )
    add(
        "--over-select",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="ask FACTOR times --cohort-size and take the first answers (default: %(default)s)",
    )
    add(
        "--min-replies",
        type=int,
        default=1,
        help="answers below which a round is repeated (default: %(default)s)",
    )
    add("--tags", type=Path, metavar="FILE", help="TOML: tag = [device key files]")
    add(
        "--select",
        action="append",
        default=[],
        metavar="TAG",
        help="ask only devices that carry this tag; repeatable, all must be carried",
    )


def _add_update_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compression",
        choices=KINDS,
        help="send updates quantised stochastically, or their largest values only",
    )
    group.add_argument(
        "--top-k",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the values that --compression top-k sends",
    )


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help="port; 0 for a free one (default: %(default)s)",
    )
    add(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="figures for Prometheus at 127.0.0.1:PORT/metrics (default: none)",
    )
    add(
        "--tls",
        type=_tls,
        default="off",
        metavar="off|auto|CA,CERT,KEY",
        help="auto makes a local authority once; or give PEM files (default: off)",
    )
    add(
        "--tls-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name or address that devices dial, for the certificate of auto; repeatable",
    )
    add(
        "--node-keys",
        type=Path,
        metavar="DIR",
        help="public keys (*.pub, *.pem) of the devices that may join; required off loopback",
    )


def _add_file_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--state-dir",
        type=Path,
        default=Path("rootlet-serve"),
        metavar="DIR",
        help="checkpoint, certificates, events and logs (default: ./%(default)s)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on after the last finished round, or end with an error where there is none; "
        "without it a federation goes on where it can and else begins",
    )
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="what is printed: lines for people, or one JSON object for each event",
    )
    add(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write the figures of every round for TensorBoard",
    )
    add("--out", type=Path, metavar="FILE", help="the improved bundle (default: in --state-dir)")
    add("--events", type=Path, metavar="FILE", help="event log (default: in --state-dir)")
    add(
        "--evaluate-data",
        type=Path,
        metavar="FILE",
        help=".npz with x and y on which the server itself evaluates",
    )
    add(
        "--feedback",
        type=Path,
        metavar="FILE",
        help="a refreshed feedback for the devices; read again before every round",
    )


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve as the arguments say; returns the exit code."""
    from rootlet_server.federation.metrics import metrics_endpoint  # noqa: PLC0415
    from rootlet_server.federation.tensorboard import tensorboard_log  # noqa: PLC0415

    federation.require_pinned_flwr()
    config = _config(arguments)
    try:
        with (
            _sigterm_as_interrupt(),
            federation.show_events(sys.stdout, as_json=arguments.log_format == "json") as show,
            tensorboard_log(arguments.tensorboard, show) as drawn,
            metrics_endpoint(arguments.metrics_port, drawn) as on_event,
        ):
            result = federation.serve(config, on_event)
    except KeyboardInterrupt:
        print(
            "stopped; the last finished round is kept, and the same command goes on after it",
            file=sys.stderr,
        )
        raise
    if arguments.log_format == "text":  # the last line of JSON says the same
        print(f"wrote {result.bundle} (version {result.version}) in {result.seconds:.1f} s")
    return 0


def _config(arguments: argparse.Namespace) -> "federation.ServeConfig":
    return federation.ServeConfig(
        bundle=arguments.bundle,
        trusted_keys=tuple(map(_trusted_key, arguments.trusted_key)),
        signing_key=arguments.signing_key,
        state_dir=arguments.state_dir,
        out=arguments.out,
        events=arguments.events,
        rounds=arguments.rounds,
        min_devices=arguments.min_devices,
        cohort_size=arguments.cohort_size,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        deadline_s=arguments.deadline,
        wait_s=arguments.wait,
        host=arguments.host,
        port=arguments.port,
        tls=arguments.tls,
        tls_names=tuple(arguments.tls_name),
        node_keys=arguments.node_keys,
        evaluate_data=arguments.evaluate_data,
        feedback=arguments.feedback,
        resume=arguments.resume,
        max_update_norm=arguments.max_update_norm,
        secure=secure_settings(arguments),
        privacy=privacy_settings(arguments),
        strategy=arguments.strategy,
        strategy_options=dict(arguments.strategy_option),
        over_select=arguments.over_select,
        min_replies=arguments.min_replies,
        tags=arguments.tags,
        select=tuple(arguments.select),
        compression=arguments.compression,
        top_k=arguments.top_k,
    )


def _trusted_key(text: str) -> Ed25519PublicKey:
    if _HEX_KEY.fullmatch(text):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    return load_public_key(text)


def _option(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value


def _tls(text: str) -> "TlsChoice":
    if text == "off":
        return "off"
    if text == "auto":
        return "auto"
    parts = [Path(part) for part in text.split(",")]
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not off, auto, or CA,CERT,KEY")
    return parts[0], parts[1], parts[2]


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that both stop every process and keep the last round."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
