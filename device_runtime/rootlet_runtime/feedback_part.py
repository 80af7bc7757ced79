"""A refreshed feedback: a signed part that replaces constants of a bundle's training graphs.

    magic | length of the header, 4 bytes, little-endian | header | signature, 64 | tensors

The header is JSON and names the bundle by the hash of its manifest, a version that only grows, and
for ``train`` (and ``grads``) which constant of the graph takes which tensor. Ed25519 signs all that
comes before the signature; the header holds the SHA-256 of the tensors, which are safetensors. The
graphs that predict and measure are out of reach: a part changes how a device learns, and nothing
that it says. ``docs/decisions/0015-refreshed-feedback.md`` has the choice.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet_runtime import signing, strict_json
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.durable import write_atomically
from rootlet_runtime.errors import FeedbackPartError
from rootlet_runtime.graph_constants import DTYPES, constants
from rootlet_runtime.manifest import format_time

MAGIC = b"RTLFB1\n"
GRAPHS = ("train", "grads")
MAX_HEADER_BYTES = 2**20
MAX_PART_BYTES = 2**28
_LENGTH = struct.Struct("<I")

AnyArrays = Mapping[str, npt.NDArray[Any]]
Overlay = dict[str, dict[str, npt.NDArray[Any]]]
"""By graph, by name of its constant."""


@dataclass(frozen=True, kw_only=True)
class FeedbackHeader:
    """What is signed.

    Attributes:
        schema: 1.
        bundle: the bundle's name, for people.
        manifest_sha256: the bundle.
        publisher: the raw Ed25519 public key that signed, in hex: the bundle's own publisher.
        version: 1 or more; a device never goes back.
        created_at: RFC 3339 in UTC.
        constants: graph -> name of its constant -> name of the tensor that it takes.
        tensors_bytes: size of the tensors.
        tensors_sha256: their SHA-256.
    """

    schema: int = 1
    bundle: str
    manifest_sha256: str
    publisher: str
    version: int
    created_at: str
    constants: Mapping[str, Mapping[str, str]]
    tensors_bytes: int
    tensors_sha256: str


@dataclass(frozen=True, kw_only=True)
class FeedbackPart:
    """A part that was verified against a bundle.

    Attributes:
        version: grows with every refresh.
        overlay: the new values, by graph and constant.
    """

    version: int
    overlay: Overlay


def encode_part(
    bundle: Bundle,
    overlay: Mapping[str, AnyArrays],
    *,
    version: int,
    signing_key: Ed25519PrivateKey,
) -> bytes:
    """A signed part for a bundle; tensors that several constants take are stored once.

    Raises:
        FeedbackPartError: a device would refuse it.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    names: dict[str, dict[str, str]] = {}
    for role, values in overlay.items():
        names[role] = {}
        for constant, value in values.items():
            digest = hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes())
            names[role][constant] = digest.hexdigest()
            tensors[digest.hexdigest()] = np.ascontiguousarray(value)
    data = safetensors.numpy.save(tensors)
    header = FeedbackHeader(
        bundle=bundle.manifest.name,
        manifest_sha256=bundle.manifest_sha256,
        publisher=signing.public_key_hex(signing_key.public_key()),
        version=version,
        created_at=format_time(datetime.now(UTC)),
        constants=names,
        tensors_bytes=len(data),
        tensors_sha256=hashlib.sha256(data).hexdigest(),
    )
    raw = strict_json.dumps(header)
    signed = MAGIC + _LENGTH.pack(len(raw)) + raw
    part = signed + signing_key.sign(signed) + data
    open_part(part, bundle)
    return part


def write_part(path: str | os.PathLike[str], part: bytes) -> None:
    """Writes a part; a crash leaves the old file or the new one."""
    write_atomically(Path(path), part, mode=0o644)


def read_part(path: str | os.PathLike[str], *, limit: int = MAX_PART_BYTES) -> bytes:
    """The bytes of a part, not verified yet; no more than ``limit`` is read.

    Raises:
        FeedbackPartError: unreadable, or larger than a part may be.
    """
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise FeedbackPartError(f"{path}: larger than {limit} bytes, the most for a part")
            part = file.read(limit + 1)
    except OSError as error:
        raise FeedbackPartError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(part) > limit:
        raise FeedbackPartError(f"{path}: grew while it was read: write another and rename it")
    return part


def open_part(part: bytes, bundle: Bundle, *, minimum_version: int = 1) -> FeedbackPart:
    """Verifies a part: its signature, its bundle, its version, its tensors, what they replace.

    Args:
        part: the bytes.
        bundle: the bundle that runs here; its publisher is the only one whose parts it takes.
        minimum_version: the newest version already accepted here; older ones are refused.

    Raises:
        FeedbackPartError: says what is wrong; nothing of the part is used.
    """
    header, data = _verified(part, bundle)
    if header.manifest_sha256 != bundle.manifest_sha256:
        raise FeedbackPartError(
            f"the part is for bundle {header.bundle} ({header.manifest_sha256[:12]}…); this one is "
            f"{bundle.manifest.name} ({bundle.manifest_sha256[:12]}…): use the part made for it"
        )
    if not max(1, minimum_version) <= header.version < 2**63:
        raise FeedbackPartError(
            f"feedback version {header.version} is older than {minimum_version}, accepted here "
            "before: ask for the current part"
        )
    if len(data) != header.tensors_bytes or _sha256(data) != header.tensors_sha256:
        raise FeedbackPartError("the part's tensors are not those that were signed: fetch it again")
    try:
        tensors = safetensors.numpy.load(bytes(data))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FeedbackPartError(f"the tensors are not readable as safetensors: {error}") from error
    overlay: Overlay = {}
    for role, names in header.constants.items():
        if role not in GRAPHS or role not in bundle.manifest.graphs:
            raise FeedbackPartError(
                f"the part changes the {role[:20]!r} graph; feedback lies in {' and '.join(GRAPHS)}"
            )
        overlay[role] = _fitting(role, names, tensors, bundle)
    used = {name for names in header.constants.values() for name in names.values()}
    if not used or used != tensors.keys():
        raise FeedbackPartError("the part holds no tensors, or some that nothing takes")
    return FeedbackPart(version=header.version, overlay=overlay)


def _verified(part: bytes, bundle: Bundle) -> tuple[FeedbackHeader, memoryview]:
    """Header and tensors, once the signature is the publisher's over the header."""
    if bundle.publisher is None:
        raise FeedbackPartError(
            "the bundle was not verified against a publisher's key, so nobody may change it: load "
            "it with trusted_keys"
        )
    view, start = memoryview(part), len(MAGIC) + _LENGTH.size
    if len(part) < start or len(part) > MAX_PART_BYTES or part[: len(MAGIC)] != MAGIC:
        raise FeedbackPartError("not a feedback part of a version that this runtime reads")
    (length,) = _LENGTH.unpack(view[len(MAGIC) : start])
    end = start + length
    if length > MAX_HEADER_BYTES or end + signing.SIGNATURE_BYTES > len(part):
        raise FeedbackPartError(f"a header of {length} bytes in a part of {len(part)}: truncated")
    signature = bytes(view[end : end + signing.SIGNATURE_BYTES])
    if signing.find_signer(bytes(view[:end]), signature, [bundle.publisher]) is None:
        raise FeedbackPartError(
            "the signature over the part's header is not that of the bundle's publisher "
            f"({signing.key_id(bundle.publisher)}): damaged, or made by another"
        )
    try:
        header = strict_json.decode(strict_json.parse(bytes(view[start:end])), FeedbackHeader)
    except strict_json.StrictJsonError as error:
        raise FeedbackPartError(f"the part's header: {error}") from error
    if header.schema != 1:
        raise FeedbackPartError(f"schema {header.schema} is unknown; this runtime reads 1")
    return header, view[end + signing.SIGNATURE_BYTES :]


def _fitting(
    role: str, names: Mapping[str, str], tensors: AnyArrays, bundle: Bundle
) -> dict[str, npt.NDArray[Any]]:
    """The tensors by constant, each of the data type and shape of what it replaces."""
    known = constants(bundle.entry(bundle.manifest.graphs[role].file))
    found = {}
    for constant, name in names.items():
        if constant not in known or name not in tensors:
            raise FeedbackPartError(
                f"the {role} graph has no constant {constant[:80]!r}, or the part no tensor for it"
            )
        value, expected = tensors[name], known[constant]
        if (DTYPES.get(value.dtype.name), value.shape) != (expected.data_type, expected.shape):
            raise FeedbackPartError(
                f"{constant}: {value.dtype}{list(value.shape)} for a constant of data type "
                f"{expected.data_type} and shape {list(expected.shape)}"
            )
        if not np.isfinite(value).all():
            raise FeedbackPartError(f"{constant}: holds NaN or infinity; feedback is finite")
        found[constant] = value
    return found


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
