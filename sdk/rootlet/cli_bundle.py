"""``rootlet bundle show | verify | keygen | sign | refresh``."""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import safetensors
import safetensors.numpy

from rootlet_runtime import (
    Bundle,
    Manifest,
    generate_keypair,
    key_id,
    load_private_key,
    load_public_key,
    publish,
    save_keypair,
)
from rootlet_runtime.errors import AdapterError, RootletError
from rootlet_runtime.feedback_part import open_part, read_part
from rootlet_runtime.manifest import format_time
from rootlet_runtime.signing import public_key_hex
from rootlet_runtime.tensors import Arrays

_ANY_AGE = datetime.fromtimestamp(0, UTC)
_MAX_ADAPTER_BYTES = 2**28
_MAX_DAYS = 36_500


def add_bundle_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``bundle`` and its commands; each sets ``run``, which returns an exit code."""
    parser = subparsers.add_parser("bundle", help="look at, verify and sign bundles")
    commands = parser.add_subparsers(dest="bundle_command", required=True)

    show = commands.add_parser("show", help="print what a bundle holds, and whether it verifies")
    show.add_argument("bundle", type=Path)
    show.add_argument("--trusted-key", type=Path, action="append", default=[], metavar="PUB.pem")
    show.add_argument("--json", action="store_true", help="print the manifest as JSON")
    show.set_defaults(run=_reported(_show))

    verify = commands.add_parser("verify", help="check a bundle as a device would")
    verify.add_argument("bundle", type=Path)
    verify.add_argument(
        "--trusted-key", type=Path, action="append", required=True, metavar="PUB.pem"
    )
    verify.add_argument("--minimum-version", type=int, default=0, metavar="N")
    verify.set_defaults(run=_reported(_verify))

    keygen = commands.add_parser("keygen", help="make a publisher's key pair")
    keygen.add_argument("--out", type=Path, required=True, metavar="DIR/NAME")
    keygen.set_defaults(run=_reported(_keygen))

    sign = commands.add_parser("sign", help="publish a bundle again under your key")
    sign.add_argument("bundle", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="KEY.pem")
    sign.add_argument("--out", type=Path, required=True, metavar="NEW")
    sign.add_argument("--version", type=int, metavar="N", help="default: one more than the source")
    sign.add_argument("--expires-in-days", type=_days, metavar="N")
    sign.add_argument("--adapter", type=Path, metavar="adapter.safetensors")
    sign.set_defaults(run=_reported(_sign))

    refresh = commands.add_parser("refresh", help="check a refreshed feedback as a device would")
    refresh.add_argument("bundle", type=Path)
    refresh.add_argument("part", type=Path)
    refresh.add_argument(
        "--trusted-key", type=Path, action="append", required=True, metavar="PUB.pem"
    )
    refresh.add_argument("--minimum-version", type=int, default=1, metavar="N")
    refresh.set_defaults(run=_reported(_refresh))


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 < days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days in 0..{_MAX_DAYS}")
    return days


def _reported(
    command: Callable[[argparse.Namespace], None],
) -> Callable[[argparse.Namespace], int]:
    """Exit code 0, or 1 with the error in one line."""

    @functools.wraps(command)
    def run(arguments: argparse.Namespace) -> int:
        try:
            command(arguments)
        except (RootletError, OSError) as error:
            message = " ".join(str(error).split())
            print(f"rootlet: {type(error).__name__}: {message}", file=sys.stderr)
            return 1
        return 0

    return run


def _show(arguments: argparse.Namespace) -> None:
    keys = [load_public_key(path) for path in arguments.trusted_key]
    with Bundle.load(
        arguments.bundle, trusted_keys=keys, allow_unsigned=True, now=_ANY_AGE
    ) as bundle:
        status, explanation = _verification(bundle)
        if arguments.json:
            shown = json.loads(bundle.manifest.to_json())
            shown["verification"] = status
            shown["manifest_sha256"] = bundle.manifest_sha256
            print(json.dumps(shown, sort_keys=True, indent=1))
        else:
            print("\n".join(_summary(bundle, explanation)))


def _verification(bundle: Bundle) -> tuple[str, str]:
    if bundle.publisher is not None:
        return "verified", f"VERIFIED: signed by the trusted key {key_id(bundle.publisher)}"
    if bundle.signature is not None:
        return "untrusted", (
            f"NOT VERIFIED: intact, and signed by {bundle.manifest.publisher}, but no "
            "--trusted-key was given to compare with"
        )
    return "unsigned", "UNSIGNED: ANYONE MAY HAVE MADE OR CHANGED THIS; devices refuse it"


def _summary(bundle: Bundle, explanation: str) -> Iterable[str]:
    manifest = bundle.manifest
    learned = sum(spec.elements for spec in manifest.adapter)
    feedback = f", {manifest.feedback} feedback" if manifest.feedback else ""
    yield explanation
    yield f"{manifest.name} version {manifest.version}, {_age(manifest)}"
    yield f"  manifest     {bundle.manifest_sha256}"
    yield f"  task         {manifest.task}, {manifest.num_outputs} outputs"
    if manifest.labels:
        yield f"  labels       {', '.join(manifest.labels[:10])}"
    yield f"  input        {manifest.x.dtype} {_shape(manifest.x.shape)}"
    yield f"  rule         {manifest.rule}{feedback}, {manifest.optimizer}"
    yield (
        f"  adapter      {manifest.adapter_kind}, rank {manifest.rank}, alpha {manifest.alpha:g}: "
        f"{learned} numbers in {len(manifest.adapter)} tensors"
    )
    yield f"  base         {manifest.base_dtype}, batches of at most {manifest.max_batch}"
    yield f"  operators    {len(bundle.summaries['train'].operators)} kinds in the train graph"
    yield f"  licence      {manifest.licence}"
    yield f"  data         {manifest.data_origin}"
    for name, entry in sorted(manifest.files.items()):
        yield f"  {entry.size:>12} {name}"


def _age(manifest: Manifest) -> str:
    if manifest.expires is None:
        return f"made {manifest.created_at}, never expires"
    verb = "EXPIRED" if manifest.expires <= datetime.now(UTC) else "expires"
    return f"made {manifest.created_at}, {verb} {manifest.expires_at}"


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("B" if size is None else str(size) for size in shape) + "]"


def _verify(arguments: argparse.Namespace) -> None:
    keys = [load_public_key(path) for path in arguments.trusted_key]
    with Bundle.load(
        arguments.bundle, trusted_keys=keys, minimum_version=arguments.minimum_version
    ) as bundle:
        manifest = bundle.manifest
        print(f"{arguments.bundle}: {manifest.name} version {manifest.version}")
        print(_verification(bundle)[1])


def _refresh(arguments: argparse.Namespace) -> None:
    keys = [load_public_key(path) for path in arguments.trusted_key]
    with Bundle.load(arguments.bundle, trusted_keys=keys) as bundle:
        part = open_part(
            read_part(arguments.part), bundle, minimum_version=arguments.minimum_version
        )
        counts = {role: len(values) for role, values in part.overlay.items()}
        print(f"{arguments.part}: feedback version {part.version} of {bundle.manifest.name}")
        for role, count in counts.items():
            print(f"  {role}: {count} constants")
        print(_verification(bundle)[1])


def _keygen(arguments: argparse.Namespace) -> None:
    private, public = generate_keypair()
    private_path, public_path = save_keypair(arguments.out, private)
    print(f"{private_path}: the private key {key_id(public)}; keep it where you sign")
    print(f"{public_path}: the public key {public_key_hex(public)}, for devices")


def _sign(arguments: argparse.Namespace) -> None:
    key = load_private_key(arguments.key)
    adapter = None
    if arguments.adapter is not None:
        adapter = _read_adapter(arguments.adapter)
    expires_at = None
    if arguments.expires_in_days is not None:
        expires_at = format_time(datetime.now(UTC) + timedelta(days=arguments.expires_in_days))
    with Bundle.load(
        arguments.bundle, trusted_keys=[], allow_unsigned=True, now=_ANY_AGE
    ) as source:
        manifest = publish(
            source,
            arguments.out,
            signing_key=key,
            version=arguments.version,
            expires_at=expires_at,
            adapter=adapter,
        )
    print(
        f"{arguments.out}: {manifest.name} version {manifest.version}, "
        f"signed by {key_id(key.public_key())}"
    )


def _read_adapter(path: Path) -> Arrays:
    if path.stat().st_size > _MAX_ADAPTER_BYTES:
        raise AdapterError(f"{path}: larger than {_MAX_ADAPTER_BYTES} bytes")
    try:
        arrays: Arrays = safetensors.numpy.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(f"{path}: not readable as safetensors: {error}") from error
    return arrays
